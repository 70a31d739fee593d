"""What stands and moves in a street, as meshes."""
