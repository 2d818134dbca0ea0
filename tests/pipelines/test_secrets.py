"""What counts as a secret, and what does not."""

from mesa_lm.pipelines.secrets import without_secrets


def test_what_is_named_like_a_secret_is_hidden_wherever_it_stands():
    given = {
        "pretrained": "org/model",
        "tokenizer": "org/tokenizer",
        "token": "hf_1",
        "args": [{"hf_token": "hf_2", "WANDB_API_KEY": "3", "password": "4"}],
        "text": "pretrained=x,token=hf_5,tokenizer=y",
        "max_tokens": 7,
    }
    hidden = without_secrets(given)
    assert not any(secret in str(hidden) for secret in ("hf_1", "hf_2", "'3'", "'4'", "hf_5"))
    assert hidden["text"] == "pretrained=x,token=[hidden],tokenizer=y"
    assert (hidden["pretrained"], hidden["tokenizer"], hidden["max_tokens"]) == ("org/model", "org/tokenizer", 7)
