import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence


class PhonemeTagger(nn.Module):
    """frames: [time, batch, n_mels]; one answer per utterance."""

    def __init__(self, n_mels: int = 10, hidden: int = 12, n_out: int = 5) -> None:
        super().__init__()
        self.gru = nn.GRU(n_mels, hidden, num_layers=2, bidirectional=True)
        self.out = nn.Linear(2 * hidden, n_out)

    def forward(self, frames: Tensor, frame_lengths: Tensor) -> Tensor:
        packed = pack_padded_sequence(frames, frame_lengths.cpu(), enforce_sorted=False)
        padded, lens = pad_packed_sequence(self.gru(packed)[0])
        return self.out(padded.sum(dim=0) / lens.unsqueeze(1))


def make() -> nn.Module:
    torch.manual_seed(102)
    return PhonemeTagger()
