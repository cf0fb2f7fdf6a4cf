"""`sharecap export`: from the rows of a store to the files that trainers read."""
