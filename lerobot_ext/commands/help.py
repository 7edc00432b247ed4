"""What `--help` says of the commands whose modules take seconds to import, as LeRobot does."""

from __future__ import annotations

SESSION = """\
  --bags=true             also write what each realsense_rgbd camera sends, untouched, beside the dataset:
                          ROOT.bags/CAMERA_N.bag (about 30 MB a second at 640x480)
  --tare_patience_s=S     how long you have for letting go of a sensor that is touched at an episode's start
                          (default 10)"""

SPLIT = """\
  --split                 the policy runs in a second process on this machine, which is started, watched and ended with
                          the run; the robot moves to initial_position meanwhile, then you press Enter
  --yes                   with --split: begin as soon as both are ready, without asking
  --split.load_s=120      how long the policy may take to load; split.connect_s and split.move_s are the robot's
  --split.restarts=0      how often an inference process that died is started again while the arm holds
  --split.device=cuda     where it computes; split.dtype, split.compile and split.threads: how
  --initial_position="{shoulder_pan: 0, gripper: 5}"   where the robot goes first, at initial_speed at most"""

RECORD = f"""usage: lerobot-ext record --config_path=configs/collect.yaml [--key=value ...]

Records a dataset by teleoperation with LeRobot's record loop: colour, depth, force, joints and actions.
Force sensors are tared at the start of each episode: nothing may touch them then; one that is touched is waited for.
Keys: right arrow ends an episode or the reset time early, left arrow records the episode again, Esc stops. Ctrl-C
stops too; digits choose the language tip, where there are several. A saved episode is safe on disk, whatever happens
afterwards; a table at the end says what was recorded, how much of it late, dropped, repeated or old.

  --config_path=FILE      YAML as stock lerobot-record takes it (configs/collect.yaml is an example to copy)
  --dataset.root=DIR      where the dataset goes; must not exist, unless --resume=true goes on with it
  --resume=true           go on with the dataset in dataset.root, also after a crash
  --dataset.num_episodes  --dataset.episode_time_s  --dataset.reset_time_s  --dataset.single_task
  --dataset.language_tip  how the task is to be done ("press until it clicks"): one text, a list to choose from, or
                          {{0: TEXT, 10: TEXT}} by episode; see docs/collect.md
  --robot.port=PORT  ...  any key of the YAML can be given here too
{SESSION}

A YAML with a `policy:` section runs that policy: see lerobot-ext evaluate --help.
"""

EVALUATE = f"""usage: [ENV=local] lerobot-ext evaluate --config_path=configs/evaluate_record.yaml [--key=value ...]

Runs a policy on the robot with LeRobot's rollout, records every episode, and shows the episodes at the end.

  without ENV        the policy of the YAML runs in this process
  ENV=local          the policy runs on a server (lerobot-ext serve); its weights are never loaded here

  --policy.path=DIR       the checkpoint (with ENV=local the server's business)
  --server.address=ADDR   where the server is (default tcp://127.0.0.1:5555)
  --server.keys=DIR       this robot's folder of keys (lerobot-ext keys), if the server has keys
  --server.timeout_s=S    longest wait for one answer
  --inference.type=async  chunks are asked for while the arm moves (the default here); sync: the arm waits for each
  --inference.merge=NAME  how a new chunk follows the old one: auto, rtc, aggregate, append, ensemble
  --inference.policy_hz=10 --inference.control_hz=100   the policy's rate and the arm's: positions in between are ours
  --dataset.root=DIR      where the recorded episodes go; must not exist, unless --resume=true
  --dataset.language_tip=TEXT  how the task is to be done, for a policy that was trained on language tips
  --visualize=false       no pages at the end
  --robot.type=replay     a recorded episode in place of a robot (--robot.root=DIR --robot.episode=N): predicted actions
                          are compared with recorded ones, see docs/evaluate.md
  --open_loop.every=N     with it: a chunk at every N-th frame, as fast as it goes, in place of the control loop
  --robot.port=PORT ...   any key of the YAML can be given here too
{SPLIT}
{SESSION}
"""

TRAIN = """usage: lerobot-ext train --config_path=configs/train.yaml [--key=value ...]

Trains a policy with LeRobot's train on the features you choose. Every key of lerobot-train works, and:

  --use_depth_image=true         depth becomes an image that any policy takes
  --use_force=true               force is joined to observation.state; --modality.force.fusion=token gives SmolVLA the
                                 last --modality.force.force_history=10 samples as a token of their own
  --use_language_tip=true        the episode's tip is appended to the task
  --modality.cameras='[wrist]'   RGB cameras by name (default: all; []: none)
  --modality.resize='[64,112]'   height and width of every image that the network sees
  --modality.depth.near_m=0.1 --modality.depth.far_m=1.5 --modality.depth.representation=gray|turbo|normals
  --modality.depth.cameras='[side_depth]'     depth streams by name (default: all)
  --modality.include='[observation.my_*]'     which of your own features are seen (default: all)
  --modality.exclude='[observation.my_*]'     observations that are not seen, of whatever kind
  --modality.cache=memory|disk   decode everything once before training and keep it: in memory, or in files that
                                 later runs find (--modality.cache_dir, at most --modality.cache_max_gb)

The choice is saved with the checkpoint, in its preprocessor: whoever runs it applies it without being told.

  --dataset.streaming=true       read while training, for a dataset that is too large for this machine
  --dataset.episodes='[0,1,2]' --dataset.eval_split=0.1 --dataset.image_transforms.enable=true
                                 train on some episodes, hold some out, vary the colours: as in LeRobot

  --policy.path=DIR              start from a checkpoint
  --policy.device=cuda           the device: cpu, cuda, cuda:1, ... (or choose with CUDA_VISIBLE_DEVICES)
  --resume=true --config_path=OUTPUT
                                 go on with an interrupted run, from its last whole checkpoint

Several GPUs: accelerate launch --multi_gpu --num_processes 2 -m lerobot_ext train --config_path=...
"""

TEXTS = {"record": RECORD, "evaluate": EVALUATE, "train": TRAIN}
