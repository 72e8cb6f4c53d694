#!/usr/bin/env python3
"""Packs files into an OCI image of one layer, which `ctr images import` takes. Needs no daemon and no registry.

image.py OUT.tar NAME:TAG [--entry ARG]... [--env K=V]... [--user UID:GID]
         [--tree DIR] [--skip PATH]... [--own PATH=UID:GID]... [--file SRC:DST]... [--libs BINARY]...

--tree   the folder becomes the root; without it there are an empty /tmp and /etc
--skip   an absolute path in the tree whose content is left out; caches, documentation, and what lies in temporary folders always is
--own    an absolute path in the tree that belongs to this user and group in the image, with all below it
--file   one file, copied to DST in place of what the tree has there
--libs   the shared libraries that BINARY needs (by ldd), and the dynamic loader, at their own paths

The same content makes the same bytes: entries are sorted, times are 0, names of users are left out.
"""
import argparse
import hashlib
import json
import os
import platform
import stat
import subprocess
import tarfile
import tempfile

# Empty in each image. Tests may work in the tree's temporary folders while it is read.
SKIP = ("dev", "proc", "run", "sys", "tmp", "var/tmp", "var/cache/apt", "var/lib/apt/lists", "usr/share/doc", "usr/share/man")
PATH = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}


def walk(tree, skip, path=""):
    """Paths below the tree, parents first; folders in `skip` without their content."""
    for name in sorted(os.listdir(os.path.join(tree, path))):
        below = os.path.join(path, name)
        mode = os.lstat(os.path.join(tree, below)).st_mode
        if stat.S_ISREG(mode) or stat.S_ISDIR(mode) or stat.S_ISLNK(mode):
            yield below
            if stat.S_ISDIR(mode) and below not in skip:
                yield from walk(tree, skip, below)


def libraries(binary):
    for line in subprocess.run(["ldd", binary], capture_output=True, text=True, check=True).stdout.splitlines():
        yield from (word for word in line.split() if word.startswith("/"))


def owner(path, own):
    """Of the rules that hold for this path the longest one; None if there is none."""
    rules = [prefix for prefix in own if path == prefix or path.startswith(prefix + "/")]
    return own[max(rules, key=len)] if rules else None


def folder(path, mode):
    entry = tarfile.TarInfo(path)
    entry.type, entry.mode = tarfile.DIRTYPE, mode
    return entry


def write_layer(out, tree, skip, own, files):
    # None: from the tree. A number: a folder with this mode. Otherwise: the file that is copied.
    content = {path: None for path in walk(tree, skip)} if tree else {"etc": 0o755, "tmp": 0o1777}
    for src, dst in files:
        parts = dst.strip("/").split("/")
        for end in range(1, len(parts)):
            content.setdefault("/".join(parts[:end]), 0o755)
        content["/".join(parts)] = os.path.realpath(src)
    with tarfile.open(out, "w") as tar:
        for path, source in sorted(content.items(), key=lambda item: item[0].split("/")):
            if source is None:
                entry = tar.gettarinfo(os.path.join(tree, path), path)
                entry.uid, entry.gid = owner(path, own) or (entry.uid, entry.gid)
            elif isinstance(source, int):
                entry = folder(path, source)
            else:
                entry = tarfile.TarInfo(path)
                entry.size = os.path.getsize(source)
                entry.mode = 0o755 if os.access(source, os.X_OK) else 0o644
            entry.mtime, entry.uname, entry.gname = 0, "", ""
            if not entry.isreg():
                tar.addfile(entry)
            else:
                with open(source or os.path.join(tree, path), "rb") as f:
                    tar.addfile(entry, f)


def digest(path):
    sha = hashlib.sha256()
    with open(path, "rb") as f:
        while block := f.read(1 << 20):
            sha.update(block)
    return sha.hexdigest()


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("out")
    ap.add_argument("name")
    ap.add_argument("--entry", action="append", default=[])
    ap.add_argument("--env", action="append", default=[])
    ap.add_argument("--user", default="65532:65532")
    ap.add_argument("--tree")
    for option in ("--skip", "--own", "--file", "--libs"):
        ap.add_argument(option, action="append", default=[])
    a = ap.parse_args()

    skip = {*SKIP, *(path.strip("/") for path in a.skip)}
    own = {}
    for rule in a.own:
        path, ids = rule.split("=")
        own[path.strip("/")] = tuple(int(number) for number in ids.split(":"))
    files = [(lib, lib) for binary in a.libs for lib in libraries(binary)] + [pair.split(":") for pair in a.file]

    # Beside the result, which may be large and is put in place when it is whole.
    with tempfile.TemporaryDirectory(dir=os.path.dirname(os.path.abspath(a.out))) as tmp:
        layer = os.path.join(tmp, "layer")
        write_layer(layer, a.tree, skip, own, files)
        layer_digest = digest(layer)
        whole = os.path.join(tmp, "whole")
        with tarfile.open(whole, "w") as tar:

            def add(path, name):
                entry = tarfile.TarInfo(name)
                entry.size = os.path.getsize(path)
                with open(path, "rb") as f:
                    tar.addfile(entry, f)

            def write(data, name=None):
                """Adds JSON, as a blob unless it has a name, and returns how it is referred to."""
                path = os.path.join(tmp, "json")
                with open(path, "w") as f:
                    json.dump(data, f, sort_keys=True)
                sha = digest(path)
                add(path, name or f"blobs/sha256/{sha}")
                return {"digest": f"sha256:{sha}", "size": os.path.getsize(path)}

            kind = "application/vnd.oci.image."
            config = write({
                "architecture": ARCHITECTURES.get(platform.machine(), platform.machine()),
                "os": "linux",
                "config": {
                    "Entrypoint": a.entry,
                    "User": a.user,
                    "Env": a.env if any(pair.startswith("PATH=") for pair in a.env) else [PATH, *a.env],
                },
                "rootfs": {"type": "layers", "diff_ids": [f"sha256:{layer_digest}"]},
            })
            manifest = write({
                "schemaVersion": 2,
                "mediaType": kind + "manifest.v1+json",
                "config": {"mediaType": kind + "config.v1+json", **config},
                "layers": [{
                    "mediaType": kind + "layer.v1.tar",
                    "digest": f"sha256:{layer_digest}",
                    "size": os.path.getsize(layer),
                }],
            })
            names = {"io.containerd.image.name": a.name, "org.opencontainers.image.ref.name": a.name.rsplit(":", 1)[-1]}
            write({
                "schemaVersion": 2,
                "manifests": [{"mediaType": kind + "manifest.v1+json", **manifest, "annotations": names}],
            }, "index.json")
            write({"imageLayoutVersion": "1.0.0"}, "oci-layout")
            add(layer, f"blobs/sha256/{layer_digest}")
        os.replace(whole, a.out)


if __name__ == "__main__":
    main()
