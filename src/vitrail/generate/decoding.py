"""Decoding: one generate() call, from checked inputs to the last id. Arguments are read in loop.py and options.py.

Letters: B prompts · R rows (prompts × completions) · n running rows · T positions of the prompt · V vocabulary.
"""

from collections import Counter
from collections.abc import Callable, Generator, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor

from vitrail.configs.generation import GenerationConfig
from vitrail.errors import InputError
from vitrail.generate.beginning import check_beginning
from vitrail.generate.features import ImageFeatures
from vitrail.generate.outputs import GenerateOutput
from vitrail.generate.prompt import Prompt, count_ids
from vitrail.generate.protocol import GeneratingModel
from vitrail.generate.runner import CHUNK, Progress, Request, Runner
from vitrail.generate.sampling import Sampler, SamplingParameters, SamplingState
from vitrail.generate.stopping import Stopper
from vitrail.generate.uncached import UncachedRunner
from vitrail.kv.foreign import is_foreign, update_foreign
from vitrail.ops.in_use import alone, running
from vitrail.responses.ids import to_list
from vitrail.weights.mapped import refuse_cut

Processor = Callable[..., Tensor]  # transformers' signature: (input_ids (R, T), scores (R, V)) → scores
AllowedIds = Callable[[int, Tensor], Sequence[int]]  # (row, its ids (T,)) → allowed next ids


class Decoding:
    """The rows of one call during generation. Iterate over `run()`, then call `output()`.

    Args:
        model: model protocol (protocol.py).
        prompt: the batch of prompts.
        config: resolved options.
        stopper: ends rows; its limit is the number of new ids.
        processors, allowed_ids: the caller's callables.
        progress: called during the prefill.
    """

    def __init__(
        self,
        model: GeneratingModel,
        prompt: Prompt,
        config: GenerationConfig,
        stopper: Stopper,
        *,
        processors: Sequence[Processor] = (),
        allowed_ids: AllowedIds | None = None,
        progress: Progress | None = None,
    ) -> None:
        refuse_cut(getattr(model, "shared", model))
        self.model, self.prompt, self.config, self.stopper = model, prompt, config, stopper
        self._processors, self._allowed_ids, self._progress = processors, allowed_ids, progress
        self._filler = self._choose_filler()
        copies = config.num_return_sequences
        start = prompt.ids.repeat_interleave(copies, dim=0)
        self._ids = start.new_full((len(start), start.shape[1] + stopper.limit), self._filler)
        self._ids[:, : start.shape[1]] = start
        self._width = start.shape[1]
        self._running = list(range(len(start)))
        self._reasons = [""] * len(start)
        self._scores: list[Tensor] = []
        self._logits: list[Tensor] = []
        self._sampler = Sampler()
        self._states: list[SamplingState] = []
        self._images: list[bytes] = []  # fingerprint of each prompt's images
        self._cache_left_open: Runner | None = None

    @property
    def ids(self) -> Tensor:
        """int64 (R, T + new ids)."""
        return self._ids[:, : self._width]

    @torch.no_grad()
    def run(self) -> Generator[Tensor, None, None]:
        """Yield the new ids (R,) of every step; rows that have ended get the padding id.

        However iteration ends (interrupts and closing included), all sequences in the cache are freed, unless the caller
        passed the cache or receives it.
        """
        with ExitStack() as uses:
            uses.enter_context(running(getattr(self.model, "shared", self.model)))
            if self.prompt.past.cache is not None:
                uses.enter_context(alone(self.prompt.past.cache, "this past_key_values"))
            yield from self._run()

    def _run(self) -> Generator[Tensor, None, None]:
        requests = self._requests()
        self._states = self._begin()
        runner = self._runner(requests)
        done = False
        try:
            logits = runner.prefill()
            while True:
                new = self._draw(logits)
                column = self._append(new)
                for row in self._end_rows():
                    if not self._keeps_cache:
                        runner.drop(row)
                done = not self._running
                yield column
                if done:
                    break
                logits = runner.decode(self._running, column[self._running])
        finally:
            if done and self._keeps_cache and isinstance(runner, Runner):
                self._leave_open(runner)
            else:
                runner.close()

    def output(self) -> GenerateOutput:
        """Return the ids and what was recorded."""
        config = self.config
        return GenerateOutput(
            sequences=self.ids.clone(),
            scores=tuple(self._scores) if config.output_scores else None,
            logits=tuple(self._logits) if config.output_logits else None,
            past_key_values=None if self._cache_left_open is None else self._cache_left_open.cache,
            finish_reasons=tuple(self._reasons),
        )

    # --- beginning ----------------------------------------------------------------------------------------

    @property
    def _keeps_cache(self) -> bool:
        return self.prompt.past.given is not None or (
            self.config.return_dict_in_generate and self.config.use_cache
        )

    def _choose_filler(self) -> int:
        """Return the id that fills rows that ended early: pad_token_id, else the first EOS id."""
        config, stopper = self.config, self.stopper
        if config.pad_token_id is not None and config.pad_token_id >= 0:
            return config.pad_token_id
        if config.eos_token_ids:
            return config.eos_token_ids[0]
        rows = self.prompt.batch * config.num_return_sequences
        if rows > 1 and (stopper.strings is not None or stopper.criteria):
            raise InputError(
                "rows can end at different times and nothing says what fills them; set pad_token_id."
            )
        return 0

    def _requests(self) -> list[Request]:
        """Build the runner's requests, one per prompt, or one per row if every row's cache is returned whole."""
        prompt, model = self.prompt, self.model
        embeds = prompt.embeds or [None] * prompt.batch
        requests = [
            Request(ids, part)
            for ids, part in zip(prompt.rows, embeds, strict=True)
            for _ in range(self.config.num_return_sequences if self._keeps_cache else 1)
        ]
        for request, before in zip(requests, prompt.past.lengths, strict=False):
            request.done = before
            request.past = before if prompt.past.new_only else 0
        whole: ImageFeatures | None = None
        if prompt.pixel_values is None:
            fresh = sum(count_ids(request.fresh, model.image_token_id) for request in requests)
            if fresh and prompt.embeds is None:
                raise InputError(
                    f"the prompt has {fresh} image tokens and came without images; give pixel_values."
                )
        else:
            whole = self._hand_out(requests, prompt.pixel_values)
        self._check_beginnings(requests, whole)
        return requests

    def _check_beginnings(self, requests: list[Request], whole: ImageFeatures | None) -> None:
        """Compare the prompts with what a caller's cache holds. whole: the features of all images, cached ones too."""
        past, first = self.prompt.past, 0
        if past.cache is None or past.new_only or len(requests) > self.prompt.batch:
            return
        for n, request in enumerate(requests):
            features = [] if whole is None else [(whole, first)]
            check_beginning(self.model, past.cache, n, request.ids, request.embeds, features)
            first += count_ids(request.ids, self.model.image_token_id)

    def _hand_out(self, requests: list[Request], pixel_values: Tensor) -> ImageFeatures | None:
        """Assign every prompt its range of the image features; returns them where cached images are among them."""
        prompt, image = self.prompt, self.model.image_token_id
        features = ImageFeatures(self.model, pixel_values, prompt.image_sizes)
        each = len(requests) // prompt.batch
        counts = [count_ids(row, image) for row in prompt.rows]
        fresh = [count_ids(request.fresh, image) for request in requests[::each]]
        all_given = features.total == sum(counts)
        if features.total == sum(fresh):  # only images of positions that are not cached yet
            counts = fresh
        if features.total != sum(counts):
            raise InputError(
                f"the prompt has {sum(counts)} image tokens, the images have {features.total} features; "
                "process text and images together, with the processor of this checkpoint."
            )
        begin = 0
        for n, (count, new) in enumerate(zip(counts, fresh, strict=True)):
            for request in requests[n * each : (n + 1) * each]:
                request.features, request.next_feature = features, begin + count - new
            if self.config.do_sample:  # only sampling needs identities of rows
                self._images.append(features.digest(begin, begin + count))
            begin += count
        return features if all_given else None

    def _begin(self) -> list[SamplingState]:
        """Create a sampling state per row."""
        prompt, copies = self.prompt, self.config.num_return_sequences
        parameters = SamplingParameters.from_config(self.config, width=prompt.width)
        rows = [n for n in range(prompt.batch) for _ in range(copies)]
        if parameters.repetition_penalty != 1 or parameters.no_repeat_ngram_size:
            prompt.past.check_ids_known()
        states = [SamplingState(parameters, prompt.whole(n)) for n in rows]
        if not parameters.do_sample:
            return states
        seeds = self.config.seeds
        if not seeds:
            drawn = torch.randint(0, 2**63 - 1, (len(rows),)).tolist()  # follows torch.manual_seed
            for state, seed in zip(states, drawn, strict=True):
                state.seed = seed
            return states
        if len(seeds) not in (1, prompt.batch):
            raise InputError(
                f"seed has {len(seeds)} numbers for {prompt.batch} prompts; give one, or one for each."
            )
        earlier: Counter[tuple[Any, ...]] = Counter()
        for n, state in zip(rows, states, strict=True):
            # A row's draws depend only on its own prompt and seed; a repeated prompt uses a further stream.
            state.seed = seeds[n % len(seeds)]
            name = (state.seed, *self._identity(n))
            state.stream = earlier[name]
            earlier[name] += 1
        return states

    def _identity(self, n: int) -> tuple[bytes, ...]:
        """Return what distinguishes prompt n from the others: its ids or embeddings, and its images."""
        prompt = self.prompt
        if prompt.embeds is not None:
            return (prompt.embeds[n].detach().float().cpu().numpy().tobytes(),)
        return (torch.tensor(prompt.whole(n)).numpy().tobytes(), *self._images[n : n + 1])

    def _runner(self, requests: list[Request]) -> Runner | UncachedRunner:
        config = self.config
        copies = config.num_return_sequences * self.prompt.batch // len(requests)
        if not config.use_cache and self.prompt.past.cache is None:
            return UncachedRunner(self.model, requests, copies=copies)
        if self.prompt.past.cache is not None and config.num_return_sequences > 1:
            raise InputError(
                "num_return_sequences above 1 does not go with past_key_values; call once per completion."
            )
        return Runner(
            self.model,
            requests,
            copies=copies,
            room=self.stopper.limit,
            chunk=config.prefill_chunk_size or CHUNK,
            cache=self.prompt.past.cache,
            cache_dtype=config.cache_dtype,
            progress=self._progress,
        )

    # --- steps --------------------------------------------------------------------------------------------

    def _draw(self, logits: Tensor) -> Tensor:
        """Sample the next id (n,) of each running row."""
        rows = [self._states[row] for row in self._running]
        if self._allowed_ids is not None:
            for row in self._running:
                self._states[row].allowed = self._ask_allowed(self._allowed_ids, row, logits)
        new, scores = self._sampler(logits, rows, self._ask_processors if self._processors else None)
        if self.config.return_dict_in_generate:
            if self.config.output_scores:
                self._scores.append(self._whole_batch(scores))
            if self.config.output_logits:
                self._logits.append(self._whole_batch(logits.float()))
        return new

    def _ask_allowed(self, allowed_ids: AllowedIds, row: int, logits: Tensor) -> Tensor:
        """Return bool (V,), the ids allowed next by the caller's function."""
        ids, vocabulary = to_list(allowed_ids(row, self.ids[row])), logits.shape[-1]
        if not isinstance(ids, (list, tuple, set, range)) or not all(
            type(i) is int and 0 <= i < vocabulary for i in ids
        ):
            raise InputError(
                f"prefix_allowed_tokens_fn must return a list of ids from 0 to {vocabulary - 1}, got {ids!r:.100}."
            )
        ids = list(ids)
        if not ids:
            raise InputError(
                f"prefix_allowed_tokens_fn allows no id for row {row}; it must allow at least one."
            )
        allowed = torch.zeros(vocabulary, dtype=torch.bool, device=logits.device)
        allowed[torch.tensor(ids, device=logits.device)] = True
        return allowed

    def _ask_processors(self, scores: Tensor) -> Tensor:
        """Apply the caller's logits processors to the whole batch; rows that have ended are zero."""
        whole = self._whole_batch(scores)
        for processor in self._processors:
            answer = processor(self.ids, whole)
            if not isinstance(answer, Tensor) or answer.shape != whole.shape:
                shape = tuple(answer.shape) if isinstance(answer, Tensor) else type(answer).__name__
                raise InputError(
                    f"logits processor {processor!r} must return scores {tuple(whole.shape)}, got {shape}."
                )
            whole = answer
        return whole[self._running].to(scores)

    def _whole_batch(self, values: Tensor) -> Tensor:
        """Scatter (n, V) to (R, V); zero for rows that have ended."""
        if len(self._running) == len(self._states):
            return values.clone()
        whole = values.new_zeros(len(self._states), values.shape[-1])
        whole[self._running] = values
        return whole

    def _append(self, new: Tensor) -> Tensor:
        for row, token in zip(self._running, new.tolist(), strict=True):
            self._states[row].add(token)
        self._ids[self._running, self._width] = new.to(self._ids.device)
        self._width += 1
        return self._ids[:, self._width - 1]

    def _end_rows(self) -> list[int]:
        """Stop and return the rows that end with their newest id."""
        rows = [self._states[row] for row in self._running]
        scores = tuple(self._scores) if self._scores else None
        reasons = self.stopper.reasons(rows, self._running, lambda: self.ids, scores)
        ended = []
        for row, reason in zip(list(self._running), reasons, strict=True):
            if reason is not None:
                self._reasons[row] = reason
                self._running.remove(row)
                ended.append(row)
        return ended

    def _leave_open(self, runner: Runner) -> None:
        """Leave the cache to the caller, with the padded view for forward() and the ids of its rows."""
        past, cache = self.prompt.past, runner.cache
        lengths = torch.tensor([request.length for request in runner.requests])
        drawn = torch.tensor(runner.cached()) - lengths
        after = torch.arange(int(drawn.max()))[None, :] < drawn[:, None]
        before = past.join(self.prompt.kept).repeat_interleave(self.config.num_return_sequences, dim=0)
        cache.mask = torch.cat([before, after], dim=1)
        if self.prompt.embeds is None:
            for sequence, request, state in zip(cache.sequences, runner.requests, self._states, strict=True):
                start = 0 if len(state.history) >= cache.length(sequence) else request.past
                cache.record_ids(sequence, state.history, start)
        self._cache_left_open = runner
        if is_foreign(past.given):
            update_foreign(past.given, cache, before.shape[1] + int(drawn.min()))
