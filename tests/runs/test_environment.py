import json
import os
import subprocess

from jmeta.runs import environment


def test_describe_is_json():
    described = environment.describe()
    assert json.loads(json.dumps(described)) == described
    assert described["matmul_precision"] == "highest"


def test_command_has_no_paths_of_the_machine():
    argv = ["/opt/bin/jmeta", "train", "--run-dir", "/home/me/runs/a", "--x=/home/me/b", "runs/c", "--y=1"]
    assert environment.command(argv) == [
        "jmeta", "train", "--run-dir", "a", "--x=b", "runs/c", "--y=1"
    ]  # fmt: skip
    assert environment.command(["/src/jmeta/__main__.py"]) == ["jmeta"]


def git(path, *arguments):
    identity = ["-c", "user.name=a", "-c", "user.email=a@example.org"]
    subprocess.run(["git", "-C", str(path), *identity, *arguments], check=True, capture_output=True)


def test_git_revision_is_of_the_package_only(tmp_path):
    package = tmp_path / "package"
    package.mkdir()
    (package / "__init__.py").write_text("")
    assert environment.git_revision(package) is None
    git(tmp_path, "init")
    git(tmp_path, "commit", "--allow-empty", "-m", "without the package")
    assert environment.git_revision(package) is None  # a checkout of something else
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-m", "with it")
    revision = environment.git_revision(package)
    assert len(revision) == 40
    (package / "__init__.py").write_text("changed")
    assert environment.git_revision(package) == f"{revision}-dirty"


def test_the_revision_is_read_without_a_lock_in_the_checkout(tmp_path):
    (tmp_path / "__init__.py").write_text("")
    git(tmp_path, "init")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-m", "it")
    os.utime(tmp_path / "__init__.py", (0, 0))  # git would write this down in its index
    (tmp_path / ".git" / "index.lock").write_text("")  # of another git, or left by one that was killed
    before = (tmp_path / ".git" / "index").read_bytes()
    assert len(environment.git_revision(tmp_path)) == 40
    (tmp_path / ".git" / "index.lock").unlink()
    assert len(environment.git_revision(tmp_path)) == 40
    assert (tmp_path / ".git" / "index").read_bytes() == before
