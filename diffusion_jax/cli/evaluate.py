"""Measure a trained model, or any set of images.

    python -m diffusion_jax evaluate --workdir runs/quickstart --metrics fid,kid,agreement --samples 2000 \\
        --features inception_random
    python -m diffusion_jax evaluate --workdir runs/cifar10_edm --metrics fid,precision_recall --samples 50000 \\
        --reference cifar10-32x32.npz
    python -m diffusion_jax evaluate --images theirs/ --reference ours.zip --metrics fid,kid

--workdir DIR          the folder of the run; its samples are kept there and not drawn twice
--images PATH          instead: a folder, zip or npz file of images
--metrics A,B          fid, sfid, fid_infinity, kid, fd_dinov2, cmmd, inception_score, precision_recall,
                       density_coverage; of models of captions clip_score; of embedded data also agreement,
                       sliced_distance, surplus_nats. By default fid
--samples N            how many, by default 10000; published numbers have 50000
--reference R          statistics (npz with mu and sigma), images (folder, zip, npz with arr_0), the folder of another
                       run, tfds:NAME or tfds:NAME:SPLIT, or data:DIR, the data of another run. By default the data the
                       run was trained on
--features NAME        inception (by default), inception_random, pixels, clip, dinov2; or a dict with keywords, as
                       "{'name': 'inception', 'resize': 'clean'}"
--seeds A,B,...        draw a set of samples for each: values are means, with the interval of the mean
--step N               the checkpoint, by default the newest
--out FILE             write the cards there as well, as JSON
--config.KEY=VALUE     change the run's `sampling`: steps, solver, guidance, average, seed, batch_size, ...

Every number is a card: it says on what, by which features and against which reference it was measured, and cards that
were measured differently are not put into one table. The cards of a run are kept in its folder `evaluations/`.
"""

from collections.abc import Callable, Sequence

from diffusion_jax import assess
from diffusion_jax.cli import arguments
from diffusion_jax.evaluation.card import write_cards
from diffusion_jax.files import check_file


def prepare(argv: Sequence[str]) -> Callable[[], None]:
    """Check the request and read what is to be measured; return the job."""
    given, out = arguments.read_evaluation(argv)
    if out is not None:
        check_file(out, "--out")
    job = assess.prepare(assess.Question(**given))

    def answer():
        cards = job()
        print(cards)
        if out is not None:
            out.parent.mkdir(parents=True, exist_ok=True)
            write_cards(out, cards)

    return answer
