"""`sharecap batch`: captions many videos with a running service, and writes them into a store."""
