"""The default configuration; files in configs/ change what they need.

Every field is documented here once. A locked copy is what the programs read,
so that a misspelt `--config.field` is refused with a suggestion.
"""

from ml_collections import ConfigDict

SCANNET_HOW_TO_GET = """ScanNet v2 needs a signed agreement: http://www.scan-net.org.
scripts/prepare_scannet.py brings the raw release into the asset layout; the
folders as WSegPC's authors processed them are read with
--config.data.format=scannet. docs/scannet.md goes from download to score.
Point --config.data.root to the data. configs/tiny_cmg.py needs none."""
S3DIS_HOW_TO_GET = """S3DIS and 2D-3D-S need a signed agreement:
http://buildingparser.stanford.edu/dataset.html. scripts/prepare_s3dis.py
brings the raw releases into the asset layout; the folders as WSegPC's authors
processed them are read with --config.data.format=s3dis. docs/s3dis.md goes
from download to score. Point --config.data.root to the data.
configs/tiny_cmg.py needs none."""
SEMANTIC_KITTI_HOW_TO_GET = """SemanticKITTI: http://www.semantic-kitti.org. The folder has
sequences/NN/velodyne/*.bin and sequences/NN/labels/*.label
(docs/semantic_kitti.md). Point --config.data.root to it; configs/tiny_cmg.py
needs no data."""


def get_defaults() -> ConfigDict:
  """Stage 1 of WSegPC on a data set in the asset layout."""
  return ConfigDict(
    dict(
      # "wsegpc" (stages 1 and 2), "segmentation" (stage 3, or full labels) or
      # "clustering" (Cluster3DSeg: full labels, and clusters within classes).
      method="wsegpc",
      # "" = the fixed behaviour; "reference" = the released code's faults that
      # change a loss (see README).
      compat="",
      seed=1463,
      # Of activations: "float32" or "bfloat16"; parameters stay float32.
      dtype="float32",
      # "shard_map" or "pmap" over all devices, "vmap" = the slow oracle.
      parallel="shard_map",
      # Working directory of the stage before, whose best checkpoint this one
      # starts from, or a file of PyTorch weights (.pth, .pt, .pth.tar or
      # .safetensors; WSegPC's or a MinkUNet's); "" = random weights.
      init_from="",
      # Its "best" checkpoint or its "latest".
      init_checkpoint="best",
      data=dict(
        root="",  # folder of the data set
        # How it is laid out: "assets" (docs/assets.md), or as WSegPC's authors
        # processed it, "scannet" (docs/scannet.md) or "s3dis" (docs/s3dis.md);
        # or "semantic_kitti" (docs/semantic_kitti.md).
        format="assets",
        # Format "scannet": turn points, normals and poses by a scene's axis
        # alignment; False = as the release lies, as WSegPC's authors train.
        axis_align=True,
        # "rgbd": colour and normal of a voxel's first point, grid by floor;
        # "lidar": its place and remission, grid by rounding.
        sensor="rgbd",
        # Folder for a cache of decoded scenes, which later epochs map into
        # memory; "" = decode every time. It takes the space of raw arrays, and
        # does not notice that the data set changes: delete it then.
        cache="",
        # How to get the data, shown when the folder is not there.
        how_to_get="",
        train_split="train",
        # Stage 3: folder of <scene>.npz with pred_label; "" = labels of the
        # data set ("segmentation" only: fully supervised).
        labels_from="",
        voxel_size=0.04,  # metres
        num_views=6,
        image_size=(240, 320),
        # Largest difference in depth of a link, metres; 0 = the voxel size.
        link_tolerance=0.0,
        drop_probability=0.5,
        max_rotation=0.5236,  # radians, of the student's view
        mix3d=0.0,
        num_pairs=512,
        # A training scene with more voxels is cropped; 0 = only if it would
        # not fit into the largest bucket.
        max_voxels=0,
        # Ladder of voxel capacities of one device's share.
        smallest_bucket=20_000,
        largest_bucket=800_000,
        bucket_ratio=1.25,
        # Room at strides 1, 2, 4, 8 and 16 per voxel of a bucket: what a data
        # set needs, with a margin. A batch that is denser at some stride takes
        # the next bucket.
        level_ratios=(1.0, 0.5, 0.2, 0.08, 0.03),
        # Laser scans: which voxels stay of a scan that has more than max_voxels,
        # "random" ones or those "nearest" to a random one.
        cap="random",
        # SemanticKITTI: the label map that is scored, and, if another, the one
        # to train on ("official", "spvnas", ...); earlier scans joined to each;
        # scans of the splits, as "00,01_000000-000099", "" = the official ones.
        label_map="official",
        train_label_map="",
        past_scans=0,
        scans=dict(train="", val=""),
        threads=2,
        prefetch=2,
        # Built-in box rooms are written to `root` if these are above 0.
        box_rooms=dict(train=0, val=0, seed=0, image_size=(60, 80)),
        # Likewise for synthetic rooms (python -m wsegpc_jax.data.synthetic).
        synthetic=dict(train=0, val=0, seed=0, image_size=(96, 128)),
      ),
      model=dict(
        # A key of models.minkunet.ARCHITECTURES or of models.spvcnn's, or
        # "minkunet_spvnas", SPVCNN without its point branch.
        arch="18A",
        width=32,  # of the stem; 32 in the papers
        dropout=0.3,  # of SPVCNN
        # Keep only what enters the residual blocks and compute the rest again
        # in the backward pass: less memory, more time.
        remat=False,
        image_depth=50,  # 18, 34, 50 or 101
        image_width=64,  # of the first stage; 64 in the papers
        # File of weights that the 2D network starts from: torchvision's
        # ResNet, MoCo, SwAV, DeepCluster v2, DINO, OBoW or PixPro; "" = random
        # ones, unless init_from has some.
        image_weights="",
        # Of the convolutions; "" = the best available.
        implementation="",
      ),
      loss=dict(
        cam_3d=1.0,
        cam_2d=1.0,
        cmg_3d=0.05,
        cmg_2d=0.05,
        rpc_3d=0.0,
        rpc_2d=0.0,
        # Linear warm-ups, steps.
        cam_warmup=2400,
        cmg_warmup=2400,
        rpc_warmup=2400,
        temperature=0.07,
        p_cutoff=0.8,
        # Of "clustering"; a term of weight 0 is left out.
        ce=1.0,
        lovasz=1.0,
        cluster=1.0,
      ),
      # Of "clustering": see methods.cluster_step.ClusterSettings.
      cluster=dict(
        # Features that are clustered: "bottleneck" or "decoder".
        feature_source="bottleneck",
        clusters=40,
        short_classes=(),
        short_clusters=10,
        max_samples=2000,
        max_views=100,
        sharpness=25.0,
        temperature=0.1,
        center_keep=0.9999,
        queue_slots=50,
        max_enqueue=10,
      ),
      ema_keep=0.999,
      train=dict(
        # "sgd", or "adamw" (without `momentum`), which schedules of a few hundred
        # steps need.
        optimizer="sgd",
        lr=0.1,
        # "polynomial" (with `power`), or "cosine" with Nesterov's momentum.
        schedule="polynomial",
        warmup_steps=0,  # of "cosine"
        momentum=0.9,
        weight_decay=1e-4,
        power=0.9,
        batch_size=4,  # scenes, over all devices
        # Parts of a device's share of them, one after the other: the memory of
        # one part. Losses weigh as in one batch; batch norm sees a part.
        accumulate=1,
        epochs=50,
        loop=4,  # passes over the scenes in an epoch
        # Stop after this many evaluations without gain; 0 = never.
        patience=0,
        # Above 0: train this many steps whatever the epochs say.
        total_steps=0,
        # Evaluate every so many steps; 0 = once an epoch, -1 = never.
        eval_every=0,
        # Checkpoint every so many steps besides; 0 = only with evaluations.
        checkpoint_every=500,
        log_every=20,
        progress_seconds=5.0,
      ),
      eval=dict(
        split="val",
        # "teacher" or "student"; stage 3 has a student only.
        weights="teacher",
        # Logits of classes that are not tagged are masked out.
        use_tags=True,
        # "none", "mean" (over superpoints) or "half" (mean with the own one).
        superpoints="none",
        # Test-time augmentation of --mode=eval and predict: "none", "rotate"
        # (quarter turns), "rotate_5" (for laser scans), "flip", "scale",
        # "rotate_flip", "rotate_scale" or "rotate_flip_scale". Never used to
        # choose the best checkpoint.
        tta="none",
        # "best" or "latest", for --mode=eval, label and predict.
        checkpoint="best",
        # IoU of a class that neither occurs nor is predicted: "skip" leaves it
        # out of the mean, "zero" counts it as 0, as SemanticKITTI's scorer does.
        absent="skip",
        # "scannet" also writes a benchmark submission, "semantic_kitti" the
        # predictions of one (scripts/semantic_kitti_submission.py packs them).
        export="",
        # Largest number of scenes, 0 = all.
        max_scenes=0,
      ),
    )
  )


def get_tiny(variant: str = "") -> ConfigDict:
  """Narrow networks and a short schedule on built-in box rooms.

  Args:
    variant: "" or "smoke", which takes a few steps only.

  Raises:
    ValueError: an unknown variant.
  """
  config = get_defaults()
  data, train = config.data, config.train
  data.root = "data/box_rooms"
  data.box_rooms.train, data.box_rooms.val = 12, 4
  data.voxel_size = 0.1
  data.image_size = data.box_rooms.image_size = (48, 64)
  data.num_views = 4
  data.num_pairs = 128
  # One bucket: one program to compile.
  data.smallest_bucket = data.largest_bucket = 20_000
  config.model.arch = "14A"
  config.model.width = 8
  config.model.image_depth = 18
  config.model.image_width = 8
  config.loss.cam_warmup = config.loss.cmg_warmup = 20
  config.loss.rpc_warmup = 20
  config.ema_keep = 0.95
  train.lr = 0.05
  train.loop = 10
  train.epochs = 8
  train.log_every = 10
  if variant == "smoke":
    data.root = "data/box_rooms_smoke"
    data.box_rooms.train, data.box_rooms.val = 4, 2
    data.smallest_bucket = data.largest_bucket = 10_000
    train.batch_size = 2
    train.total_steps = 6
    train.eval_every = 3
    train.log_every = 1
  elif variant:
    raise ValueError(f"unknown variant {variant!r}; expected 'smoke'")
  return config


def get_synthetic(variant: str = "") -> ConfigDict:
  """Half-width networks and a short schedule on procedural rooms.

  Stage 1 of WSegPC; the files configs/synthetic_*.py change what a stage
  needs. EMA and warm-ups are scaled to the short schedule: a keep rate of
  0.999 over 700 steps would leave the teacher near its start.

  Args:
    variant: "", "demo" (fewer rooms and programs, some more steps), "gpu" (full
      width and 4 cm voxels, for one GPU) or "smoke", which takes a few steps
      only.

  Raises:
    ValueError: an unknown variant.
  """
  config = get_defaults()
  data, train = config.data, config.train
  data.root = "data/synthetic_rooms"
  data.synthetic.train, data.synthetic.val = 80, 20
  data.voxel_size = 0.14
  data.image_size = data.synthetic.image_size = (60, 80)
  data.num_views = 4
  data.num_pairs = 128
  # The largest so that no room is cropped; most batches take the first three.
  data.smallest_bucket, data.largest_bucket = 7_000, 18_000
  data.bucket_ratio = 1.3
  # Six whole rooms, turned and scaled: at most 0.27, 0.07, 0.02, 0.005; a batch
  # that is denser, as parts of rooms are dropped, has a larger bucket.
  data.level_ratios = (1.0, 0.32, 0.085, 0.024, 0.008)
  config.model.arch = "14A"
  config.model.width = config.model.image_width = 16
  config.model.image_depth = 18
  # In place of ImageNet's (python -m wsegpc_jax.synthetic_image).
  config.model.image_weights = "data/synthetic_image/r18_w16.safetensors"
  config.loss.cam_warmup = config.loss.cmg_warmup = 30
  config.loss.rpc_warmup = 30
  config.ema_keep = 0.98
  train.optimizer, train.lr = "adamw", 0.003
  train.total_steps = 400
  train.log_every = 10
  # Nothing is selected by looking at the held-out rooms.
  train.eval_every = -1
  train.checkpoint_every = 100
  config.init_checkpoint = config.eval.checkpoint = "latest"
  if variant == "demo":
    data.root = "data/synthetic_demo"
    data.synthetic.train, data.synthetic.val = 60, 10
    # With 400, CAM alone was at chance where tags are known.
    train.total_steps = 450
    # Two programs to compile.
    data.smallest_bucket, data.largest_bucket = 9_500, 16_000
    data.bucket_ratio = 2.0
  elif variant == "gpu":
    data.root = "data/synthetic_gpu"
    data.synthetic.train, data.synthetic.val = 100, 24
    data.voxel_size = 0.04
    data.image_size = data.synthetic.image_size = (120, 160)
    data.num_views = 6
    data.num_pairs = 512
    data.smallest_bucket, data.largest_bucket = 100_000, 200_000
    data.level_ratios = (1.0, 0.48, 0.15, 0.042, 0.012)
    data.threads = 12
    config.model.arch = "18A"
    config.model.width = 32
    config.model.image_width = 64
    config.model.image_weights = "data/synthetic_image/r18_w64.safetensors"
  elif variant == "smoke":
    data.root = "data/synthetic_smoke"
    data.synthetic.train, data.synthetic.val = 4, 2
    config.model.width = config.model.image_width = 4
    config.model.image_weights = ""
    train.batch_size = 2
    train.total_steps = 2
    train.checkpoint_every = 1
  elif variant:
    raise ValueError(
      f"unknown variant {variant!r}; expected 'demo', 'gpu' or 'smoke'"
    )
  return config


def get_semantic_kitti(
  arch: str, *, cluster: bool, variant: str = ""
) -> ConfigDict:
  """Cluster3DSeg or its baseline on SemanticKITTI's official split.

  Args:
    arch: a network of `models.spvcnn`.
    cluster: with within-class clustering and Lovasz-softmax, or cross-entropy
      alone, as the released code's baseline.
    variant: "", "smoke" (three scans, narrow and short, on a CPU), or, with
      clusters, "reference": the released code's numbers and faults, meant to
      start from a trained network (config.init_from).

  Raises:
    ValueError: an unknown variant.
  """
  config = get_defaults()
  data, train, evaluation = config.data, config.train, config.eval
  config.method = "clustering"
  config.seed = 1588147245
  config.model.arch = arch
  config.loss.lovasz = config.loss.cluster = 1.0 if cluster else 0.0
  config.cluster.short_classes = (6, 7)  # bicyclist, motorcyclist
  data.format, data.sensor = "semantic_kitti", "lidar"
  data.root = "data/semantic_kitti"
  data.how_to_get = SEMANTIC_KITTI_HOW_TO_GET
  data.voxel_size = 0.05
  data.max_voxels = 80_000
  # Above one scan, so that none is cut when it is scored.
  data.smallest_bucket, data.largest_bucket = 100_000, 400_000
  # The largest of three scans at 5 cm under 40 augmentations each: 0.67, 0.36,
  # 0.17, 0.07.
  data.level_ratios = (1.0, 0.75, 0.42, 0.2, 0.085)
  train.batch_size = 4
  train.loop = 1
  train.epochs = 15
  train.schedule = "cosine"
  # The released code fine-tunes a trained SPVNAS at 0.0024; from random weights
  # its authors take 0.24 on 16 scans at a time.
  train.lr = 0.06
  evaluation.weights, evaluation.use_tags = "student", False
  evaluation.absent = "zero"
  if variant == "smoke":
    _make_small_kitti(config)
  elif variant == "reference" and cluster:
    config.compat = "reference"
    config.cluster.max_samples = 100
    config.cluster.short_classes = (7, 8)
    train.lr = 0.0024
    # Its maps leave buses and lane markings out.
    data.train_label_map = "spvnas"
  elif variant:
    raise ValueError(f"unknown variant {variant!r}; expected 'smoke'")
  return config


def _make_small_kitti(config):
  """Three scans, two to train on; narrow, coarse and cropped."""
  data, train = config.data, config.train
  data.scans.train = "00_000000,00_000001"
  data.scans.val = "00_000002"
  data.voxel_size = 0.2
  data.cap = "nearest"
  data.max_voxels = 12_000
  data.smallest_bucket = data.largest_bucket = 40_000
  config.model.width = 8
  config.model.dropout = 0.0
  config.cluster.max_samples = 400
  config.cluster.clusters = 8
  config.cluster.short_clusters = 4
  config.cluster.center_keep = 0.99
  config.eval.absent = "skip"
  train.batch_size = 2
  train.total_steps = 150
  train.eval_every = 75
  train.checkpoint_every = 50
  train.log_every = 10
  train.lr = 0.05
