"""The four roles of the model: sliding and fast captioning, summary, recaption. Each is one way to prompt it."""
