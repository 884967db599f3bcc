"""Images with a folder `/models`, which clusters mount: read from a registry, and pushed to one.

An image of `push` has a layer for each version and one for other files, and nothing that can run. There is one image
for each kind of processor, with the same layers, under one index.
"""

from __future__ import annotations

import tarfile
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, Final

import orjson

from lengthwise import files
from lengthwise.addresses import Address
from lengthwise.errors import ConfigurationError
from lengthwise.stores import archives, layout
from lengthwise.stores.image_registry import INDEX_TYPE, MANIFEST_TYPE, ImageRegistry

FOLDER: Final = "models"
PROCESSORS: Final = ("amd64", "arm64")
_CONFIG_TYPE: Final = "application/vnd.oci.image.config.v1+json"
_LAYER_TYPE: Final = "application/vnd.oci.image.layer.v1.tar"
_LATEST: Final = "latest"


class ImageSource:
    """The folder `/models` of an image: a `StoreContent`."""

    def __init__(self, address: Address) -> None:
        """Asks the registry for the digest of the image, and for the list of its layers.

        Raises:
            ConfigurationError: The registry refuses, or there is no image.
            StoreUnreachable: The registry gives no answer.
        """  # noqa: DOC502 - what it calls raises one of them
        self._address = address
        with closing(ImageRegistry(address)) as registry:
            content, digest = registry.manifest(address.revision or address.tag or _LATEST)
            self.state: str | None = digest
            try:
                if manifests := orjson.loads(content).get("manifests"):  # an index: all processors have the same models
                    # Entries for the system "unknown" are no images, but attestations of how one was built.
                    images = [
                        entry["digest"] for entry in manifests if entry.get("platform", {}).get("os") != "unknown"
                    ]
                    content, _ = registry.manifest(images[0])
                self._layers = [
                    {"digest": entry["digest"], "size": int(entry["size"])} for entry in orjson.loads(content)["layers"]
                ]
            except (ValueError, LookupError, TypeError, AttributeError):
                raise ConfigurationError(f"{address} is no image") from None

    def download(self, folder: Path) -> None:
        """Writes the files of `/models` into a folder, layer after layer.

        Raises:
            ConfigurationError: A layer removes files of an earlier one.
        """
        archive, where = folder.with_name("layer"), str(self._address)
        limits = archives.FetchLimits(where, "push an image that has only the models (`lengthwise push`)")
        with closing(ImageRegistry(self._address)) as registry:
            for layer in self._layers:
                limits.allow(layer["size"])
                registry.blob(layer, archive, lambda _: limits.allow(0, files=0))  # its size is counted
                archives.extract(archive, folder, where, inside=FOLDER, limits=limits)
        if next(folder.rglob(".wh.*"), None) is not None:
            raise ConfigurationError(f"{where}: one of its layers removes files; push the models by `lengthwise push`")


open_source = ImageSource


def upload(folder: Path, address: Address) -> str:
    """Pushes an image of a model repository; returns its address by digest.

    Its layers and configuration are written next to the folder first.

    Raises:
        ConfigurationError: The registry refuses the image.
    """  # noqa: DOC502 - what it calls raises it
    versions = [*layout.versions(folder).values()]
    other_files = [path for path in folder.rglob("*") if path.is_file() and path.parent not in versions]
    with closing(ImageRegistry(address, "pull,push")) as registry:

        def put(blob: Path, media_type: str) -> dict[str, Any]:
            """Uploads a blob; returns its descriptor."""
            digest = files.digest(blob)
            registry.put_blob(digest, blob)
            return {"mediaType": media_type, "digest": digest, "size": blob.stat().st_size}

        # A layer for other files, and one for each version
        layers = [
            put(_layer(paths, folder, folder.with_name("layer")), _LAYER_TYPE)
            for paths in (other_files, *([*version.rglob("*")] for version in versions))
        ]
        # A configuration and a manifest for each processor, and an index of them
        images = list[dict[str, Any]]()
        for processor in PROCESSORS:
            platform = {"architecture": processor, "os": "linux"}
            # `diff_ids` are digests of the uncompressed layers; these layers are not compressed
            rootfs = {"type": "layers", "diff_ids": [layer["digest"] for layer in layers]}
            files.write(folder.with_name("config"), orjson.dumps({**platform, "config": {}, "rootfs": rootfs}))
            config = put(folder.with_name("config"), _CONFIG_TYPE)
            manifest = orjson.dumps(
                {"schemaVersion": 2, "mediaType": MANIFEST_TYPE, "config": config, "layers": layers}
            )
            digest = files.digest_of(manifest)
            registry.put_manifest(digest, manifest, MANIFEST_TYPE)
            images.append({"mediaType": MANIFEST_TYPE, "digest": digest, "size": len(manifest), "platform": platform})
        index = orjson.dumps({"schemaVersion": 2, "mediaType": INDEX_TYPE, "manifests": images})
        registry.put_manifest(address.tag or _LATEST, index, INDEX_TYPE)
    return f"oci://{address.host}/{address.path}@{files.digest_of(index)}"


def _layer(paths: Sequence[Path], folder: Path, target: Path) -> Path:
    """Writes files of a folder as a layer of an image, the tar archive `target`, and returns its path.

    Equal files give equal bytes, as the archive has no times and owners.
    """
    with tarfile.open(target, "w") as tar:
        for path in sorted(path for path in paths if path.is_file()):
            member = tarfile.TarInfo(f"{FOLDER}/{path.relative_to(folder).as_posix()}")
            member.size = path.stat().st_size
            with path.open("rb") as file:
                tar.addfile(member, file)
    return target
