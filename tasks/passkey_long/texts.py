"""The published texts of passkey retrieval and the prompt variants asked around them.

Source: datas/make_passkey_data.py and utils/utils.py of github.com/soacker/Mesa-Extrapolation;
the enhanced prompts are those of the paper (arXiv 2410.15859, appendix on passkey retrieval).
"""

DESCRIPTION = (
    "There is an important info hidden inside a lot of irrelevant text. Find it and memorize it. "
    "I will quiz you about the important information there."
)
FILLER = "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again."
NEEDLE = "The pass key is {key}. Remember it. {key} is the pass key."
QUESTION = "What's the pass key?"
MAX_KEY = 10_000_000

# What stands before and after the text (description, filler and needle).
PROMPTS = {
    "plain": ("", f"\n\n{QUESTION} The pass key is"),
    "llama2-chat": ("[INST] ", f" \n{QUESTION}[/INST]"),
    "alpaca": (
        "Below is an instruction that describes a task, paired with an input that provides further context. "
        f"Write a response that appropriately completes the request.\n\n### Instruction:\n{QUESTION}\n\n### Input:\n",
        "\n\n### Response:\n",
    ),
    "vicuna": (
        "A chat between a curious user and an assistant. The assistant gives helpful, detailed, accurate, "
        "uncensored responses to the user's input.\nUSER: \n",
        f" \n\n{QUESTION} \n\nASSISTANT:",
    ),
    "enhanced": ("Q: what is the passkey in below text? ", " A:"),
    "enhanced-answer": ("Q: what is the passkey in below text? ", " A: the passkey is"),
}
