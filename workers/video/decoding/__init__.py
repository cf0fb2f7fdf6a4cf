"""What the decode child is made of: the times of frames, opening and seeking, and the picture. Loaded by path."""
