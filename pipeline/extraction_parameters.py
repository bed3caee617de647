"""What to extract, and how: what a person chooses of an extraction.

Nothing here imports torch or timm, so that what only reads stores starts without them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from store.spec import DTypeName, Frozen

if TYPE_CHECKING:
    from pipeline.library_data import LibraryOptions

OnBadImage = Literal["stop", "skip"]
ClsToken = Literal["pooled", "separate", "only"]
Autocast = Literal["none", "bf16", "fp16"]
AVERAGE = "average"
"""The paper's pooling."""
DEFAULT_PRESET = "timm"
"""Preprocessing that the backbone was trained with."""


class ExtractionParameters(Frozen):
    """What to extract, and how.

    Attributes
    ----------
    backbone : str
        timm model name, optionally with a weights tag.
    data : str
        ``digits``, ``offline/<task>``, a folder of images, an ``.npz`` file, or a name such as ``torch/cifar10``; see
        `pipeline.datasets.load_data`.
    data_root : str, optional
        Where the data of a library's name is, or is kept once fetched.
    download : bool
        Whether torchvision may fetch data that is not there.
    splits : dict of str to str, optional
        The library's split for ``train``, ``test`` and ``val``.
    input_key, target_key : str, optional
        Column or part that holds the image, and the label, in data of Hugging Face and WebDataset.
    on_bad_image : str
        ``stop`` with the list of images that cannot be used, or ``skip`` them.
    weights : str
        ``pretrained``, ``shipped``, a checkpoint file, or ``random:SEED``.
    taps : tuple of str
        Preset names, module names or shell-style patterns.
    exclude : tuple of str
        Patterns of taps to leave out.
    target_sizes : tuple of int
        Features aimed at per layer.
    cls_token : str
        What becomes of prefix tokens: ``pooled``, ``separate`` or ``only``.
    pooling : str
        ``average``, the paper's rule, or that of an installed plug-in.
    dtype : str
        Type of the stored values.
    image_size : int, optional
        Height and width in pixels; the backbone's own if not given.
    preprocessing : str
        What to start from: ``timm``, the backbone's own, or ``vtab``, a plain resize to values in [−1, 1].
    interpolation, crop_mode, crop_pct, mean, std : optional
        Taking the place of what `preprocessing` says; see `pipeline.preprocessing.resolve_preprocessing`.
    batch_size : int, optional
        Images per forward pass; found by trying on a GPU, 16 on the CPU. Halved if memory does not suffice. As the
        next three, it changes values in the last digits only and is no part of the store's identity; a store that is
        resumed or grown from keeps what it was begun with.
    autocast : str
        Type of the backbone's products: ``none`` (float32), ``bf16``, ``fp16``, or ``auto``, which is ``fp16`` on a
        GPU if float16 is stored, else ``none``.
    channels_last : bool
        Whether maps lie in memory with their channels side by side, which convolutions like better.
    compile : bool
        Whether the backbone is compiled, which takes minutes at first.
    workers : int, optional
        Threads that read images; as many as there are cores if not given.
    block_size : int, optional
        Samples per committed block at most.
    device : str
        ``auto``, ``cpu``, ``cuda`` or any other torch device; several, separated by commas, work at once in processes
        of their own, as all GPUs do with ``auto``.
    dask_address : str, optional
        Scheduler of a running Dask cluster whose workers do the work, each with the device that `device` means there.
    extend : str, optional
        A store of fewer of these images, made with the same backbone and taps: what has not changed is taken over.
    """

    backbone: str
    data: str
    data_root: str | None = None
    download: bool = False
    splits: dict[str, str] | None = None
    input_key: str | None = None
    target_key: str | None = None
    on_bad_image: OnBadImage = "stop"
    weights: str = "pretrained"
    taps: tuple[str, ...] = ("head2toe",)
    exclude: tuple[str, ...] = ()
    target_sizes: tuple[Annotated[int, Field(ge=1)], ...] = (512,)
    cls_token: ClsToken = "pooled"
    pooling: str = AVERAGE
    dtype: DTypeName = "float16"
    image_size: Annotated[int, Field(ge=1)] | None = None
    preprocessing: str = DEFAULT_PRESET
    interpolation: str | None = None
    crop_mode: str | None = None
    crop_pct: float | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    batch_size: Annotated[int, Field(ge=1)] | None = None
    autocast: Literal["auto"] | Autocast = "auto"
    channels_last: bool = True
    compile: bool = False
    workers: Annotated[int, Field(ge=1)] | None = None
    block_size: Annotated[int, Field(ge=1)] | None = None
    device: str = "auto"
    dask_address: str | None = None
    extend: str | None = None

    def library_options(self) -> LibraryOptions:
        """Return what a library needs to know besides the name of the data."""
        from pipeline.library_data import LibraryOptions

        return LibraryOptions(self.data_root, self.download, self.splits, self.input_key, self.target_key)
