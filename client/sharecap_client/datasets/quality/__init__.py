"""`sharecap stats`: what captions consist of."""
