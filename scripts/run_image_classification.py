# Copyright 2026 The cait-hf authors. Licensed under the Apache License, Version 2.0.
"""`cait-hf train` as a script: fine-tune, train or evaluate an image classifier with `Trainer`.

    python scripts/run_image_classification.py finetune --model_name_or_path timm/cait_xxs24_224.fb_dist_in1k \\
        --train_dir images/train --validation_dir images/validation --output_dir outputs/finetuned

The code is `cait_hf/commands/train.py`: it prepares an experiment from the flags, gives it to the `Trainer` and writes
what it found. To change a training, start from there, or from the loop of `run_image_classification_no_trainer.py`.
"""

from cait_hf.commands.train import main


if __name__ == "__main__":
    main()
