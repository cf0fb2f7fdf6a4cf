"""`sharecap ray`: captions many videos on a Ray cluster, without a gateway and without Redis."""
