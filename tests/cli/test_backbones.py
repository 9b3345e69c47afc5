import json


def test_lists_names_sizes_and_weights(run) -> None:
    code, out, _ = run("backbones", "resnet*")
    lines = out.splitlines()
    assert code == 0
    assert [line.split()[0] for line in lines[1:]] == ["resnet101", "resnet152", "resnet18", "resnet34", "resnet50"]
    assert lines[3].split() == ["resnet18", "11.7", "M", "224", "IMAGENET1K_V1"]


def test_json_for_programs(run) -> None:
    _, out, _ = run("backbones", "resnet50", "--json")
    assert json.loads(out) == {
        "name": "resnet50",
        "parameters": 25557032,
        "input_size": 224,
        "weights": ["IMAGENET1K_V2", "IMAGENET1K_V1"],
    }


def test_a_pattern_that_matches_nothing_gets_the_nearest(run) -> None:
    code, _, err = run("backbones", "resnet19")
    assert code == 2
    assert err.count("\n") == 1
    assert "resnet18" in err


def test_of_the_hub_what_is_cached_is_listed(run, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    code, out, err = run("backbones", "hf/*")
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert f"'hf/*' matches nothing in the hub's cache ({tmp_path})" in err
    assert "hf/./FOLDER" in err
