import json

from command import assert_refused, run


def verify(*args):
    return run("verify", "out.safetensors", "--arch", "net.py:build", *args)


def test_a_whole_file_is_ok_and_its_errors_are_measured_again(shop):
    result = verify()
    assert (result.exit_code, result.stdout) == (0, "ok\n")
    values = json.loads(verify("--json").stdout)
    assert values["ok"] is True
    assert {check["name"]: check["passed"] for check in values["checks"]}["errors"] is True


def test_without_the_original_the_check_is_not_made_and_that_is_said(shop):
    (shop / "w.pt").unlink()
    result = verify("--json")
    assert result.exit_code == 0
    assert {check["name"]: check["passed"] for check in json.loads(result.stdout)["checks"]}["errors"] is None
    assert "not made" in result.stderr
    assert verify().stdout == "ok, not checked: errors\n"


def test_a_flipped_bit_ends_with_3(shop):
    content = bytearray((shop / "out.safetensors").read_bytes())
    content[-5] ^= 4
    (shop / "out.safetensors").write_bytes(content)
    result = verify()
    assert (result.exit_code, result.stdout) == (3, "FAILED\n")
    assert "digest" in result.stderr
    assert json.loads(verify("--json").stdout)["ok"] is False


def test_another_original_is_refused(shop):
    assert_refused(verify("--baseline", "net.py"), "net.py")


def test_a_file_that_is_cut_short_is_refused(shop):
    content = (shop / "out.safetensors").read_bytes()
    (shop / "out.safetensors").write_bytes(content[:-10])
    assert_refused(verify(), "not a whole safetensors file")


def test_a_torch_file_is_told_what_to_do_with_it(shop):
    assert_refused(run("verify", "w.pt"), "is a torch checkpoint", "lrcompress compress w.pt")


def test_a_changed_manifest_ends_with_3_whatever_it_says(shop):
    content = (shop / "out.safetensors").read_bytes()
    changed = content.replace(b'\\"num_classes\\":3', b'\\"num_classes\\":4')
    assert changed != content
    (shop / "out.safetensors").write_bytes(changed)
    result = verify("--json")
    assert result.exit_code == 3
    passed = {check["name"]: check["passed"] for check in json.loads(result.stdout)["checks"]}
    assert passed == {"manifest": False, "digest": True, "finite": True, "network": None, "errors": None}
    assert "the file is not as it was written" in result.stderr
