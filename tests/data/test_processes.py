"""Two real processes over gloo, under a Trainer that is told nothing but their number."""

import json
import os
import subprocess
import sys

from lit_transfer.data import ImageFolderData

SCRIPT = """
import json, sys
import torch
from lightning.pytorch import LightningModule, Trainer
from lit_transfer.data import ImageFolderData

torch.set_num_threads(1)

class Probe(LightningModule):
    def __init__(self):
        super().__init__()
        self.layer, self.seen = torch.nn.Linear(1, 1), []
    def training_step(self, batch, batch_idx):
        images, targets = batch
        sums = images.double().sum((1, 2, 3)).tolist()
        self.seen += [(self.current_epoch, *pair) for pair in zip(sums, targets.tolist())]
        return self.layer(images.mean((1, 2, 3))[:, None]).sum()
    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.0)

if __name__ == "__main__":
    module = Probe()
    data = ImageFolderData(sys.argv[1], 3, image_size=8, val_fraction=0)
    trainer = Trainer(accelerator="cpu", devices=2, strategy="ddp", max_epochs=2, logger=False,
                      enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False)
    trainer.fit(module, data)
    with open(f"{sys.argv[2]}{trainer.global_rank}", "w") as file:
        json.dump(module.seen, file)
"""


def test_two_processes_share_each_epoch_and_see_what_one_alone_would_see(make_folder, tmp_path):
    """CPU, float32, batches of 3 on each process, one thread each."""
    root = make_folder({"ants": 6, "bees": 6})
    (tmp_path / "train.py").write_text(SCRIPT)
    command = [sys.executable, "train.py", str(root), "seen_by_"]
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    ran = subprocess.run(
        command, check=False, cwd=tmp_path, env=environment, timeout=300, capture_output=True, text=True
    )
    assert ran.returncode == 0, ran.stderr
    pair = [json.loads((tmp_path / f"seen_by_{rank}").read_text()) for rank in range(2)]

    data = ImageFolderData(root, image_size=8, val_fraction=0)
    data.setup()
    samples = [(epoch, *data.train_dataset[index, epoch]) for epoch in range(2) for index in range(12)]
    alone = sorted([epoch, image.double().sum().item(), target] for epoch, image, target in samples)
    assert len({total for _, total, _ in alone}) == 24
    assert [len(seen) for seen in pair] == [12, 12]
    assert sorted(pair[0] + pair[1]) == alone
