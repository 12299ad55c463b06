

def test_a_forward_pass_takes_prompts_as_they_are() -> None:
    model = AdaptedModel(tiny_model("llama"), tokenizer(), name="tiny")
    rows = ["the quick brown fox", "jumps"]
    assert torch.equal(model.forward(rows), model.forward(model.encode(rows)))
