"""Extensions as a user writes them, in a folder outside the package, and the test that trains with each."""
