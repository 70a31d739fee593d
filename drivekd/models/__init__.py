"""Model families behind one small face, the tiny family, and attention capture. Imports torch."""
