"""The texts of kv_long, which multikey_long shares."""

HEAD = "Below is a list of keys and their values. Remember them, because I will ask you for values.\n\n"
LINE = "{key}: {value}\n"
QUESTION = "\nWhat is the value of {key}? Answer with the number only."
# What follows the question: the start of the answer for models that only continue a text, or nothing.
ENDINGS = {"answer": " The value of {key} is", "plain": ""}
VALUES = (10_000, 99_999)
