"""`drivekd demo`: the whole way on one machine, and the command that made the teachers it ships."""
