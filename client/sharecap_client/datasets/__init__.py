"""Captioning data sets: many videos into one store on disk, and from there into the files that trainers read.

Needs the extra `datasets` (pyarrow, fsspec).
"""
