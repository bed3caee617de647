"""Images that anyone can regenerate: a source task to pretrain on and target tasks in VTAB's three groups."""
