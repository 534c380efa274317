"""Anybody's own data: sets of questions, chats or texts in a user's files, and what a model still says about them."""
