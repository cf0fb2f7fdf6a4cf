"""`sharecap eval`: captions of a run compared with references."""
