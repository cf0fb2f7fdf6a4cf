"""Turning a request into a job: uploads, options, idempotency, submission."""
