"""`sharecap stats` and `eval`: what captions consist of, and how good they are."""
