"""The heads beside the language head: classify a sequence, classify tokens, find an answer.

In: what SmolLM3Model takes, and labels. Out: logits and a loss. Parameter names are the checkpoint's; the
question answering head keeps its model under `transformer`, as checkpoints do.
Shapes: B batch, T tokens, C labels.
"""

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from smollm3.errors import ParameterError
from smollm3.model.cache import Cache
from smollm3.model.config import SmolLM3Config
from smollm3.model.module import SmolLM3PreTrainedModel
from smollm3.model.outputs import (
    QuestionAnsweringModelOutput,
    SequenceClassifierOutputWithPast,
    TokenClassifierOutput,
)
from smollm3.model.smollm3 import SmolLM3Model
from smollm3.ops.loss import (
    infer_problem_type,
    question_answering_loss,
    sequence_classification_loss,
    token_classification_loss,
)

DEFAULT_CLASSIFIER_DROPOUT = 0.1


class SmolLM3ForSequenceClassification(SmolLM3PreTrainedModel):
    """One row of logits per sequence, read at its last token.

    `config.classifier_pooling` says where that is: "attention_mask" (default) takes the last token the mask
    calls real and, without a mask, the last that is not `pad_token_id`; "pad_token" never looks at the mask,
    as transformers does.
    """

    def __init__(self, config: SmolLM3Config) -> None:
        super().__init__(config)
        assert config.num_labels is not None
        self.num_labels = config.num_labels
        self.model = SmolLM3Model(config)
        self.score = nn.Linear(config.hidden_size, config.num_labels, bias=False)
        self.post_init_()

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        return_dict: bool | None = None,
    ) -> SequenceClassifierOutputWithPast | tuple[Any, ...]:
        """Classify each row.

        Args:
            labels: [B] class indices, [B] or [B, C] numbers (regression), or [B, C] zeros and ones;
                `config.problem_type` says which, and is inferred from the first labels when it is null.
        """
        base = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            output_hidden_states=output_hidden_states,
            output_attentions=output_attentions,
            return_dict=True,
        )
        x = base.last_hidden_state
        last = self._last_token(input_ids, attention_mask, x)
        logits = self.score(x[torch.arange(x.shape[0], device=x.device), last])  # [B, C]
        loss = None
        if labels is not None:
            if self.config.problem_type is None:
                self.config.problem_type = infer_problem_type(self.num_labels, labels)
            loss = sequence_classification_loss(logits, labels, self.config.problem_type)
        out = SequenceClassifierOutputWithPast(
            loss, logits, base.past_key_values, base.hidden_states, base.attentions
        )
        return out if self.wants_dict(return_dict) else out.to_tuple()

    def _last_token(self, input_ids: Tensor | None, attention_mask: Tensor | None, x: Tensor) -> Tensor:
        """Return the place [B] of each row's last real token among the T new ones."""
        B, T, _ = x.shape
        by_mask = self.config.classifier_pooling == "attention_mask"
        pad = self.config.pad_token_id
        if by_mask and attention_mask is not None and attention_mask.dim() == 2:
            real = attention_mask[:, -T:].to(x.device) != 0
        elif pad is None and B > 1:
            raise ParameterError(
                f"{B} rows and no pad_token_id: pass an attention_mask, or set config.pad_token_id, to tell "
                "where each row ends"
            )
        elif input_ids is not None and pad is not None:
            real = input_ids.to(x.device) != pad
        else:
            real = torch.ones(B, T, dtype=torch.bool, device=x.device)
        return (torch.arange(T, device=x.device) * real).argmax(-1)


class SmolLM3ForTokenClassification(SmolLM3PreTrainedModel):
    """One row of logits per token."""

    def __init__(self, config: SmolLM3Config) -> None:
        super().__init__(config)
        assert config.num_labels is not None
        self.num_labels = config.num_labels
        self.model = SmolLM3Model(config)
        rates = (config.classifier_dropout, config.hidden_dropout, DEFAULT_CLASSIFIER_DROPOUT)
        self.dropout = nn.Dropout(next(rate for rate in rates if rate is not None))
        self.score = nn.Linear(config.hidden_size, config.num_labels, bias=config.token_classification_bias)
        self.post_init_()

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        return_dict: bool | None = None,
    ) -> TokenClassifierOutput | tuple[Any, ...]:
        """Classify each token; labels [B, T] are class indices, -100 where there is nothing to learn."""
        base = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            output_hidden_states=output_hidden_states,
            output_attentions=output_attentions,
            return_dict=True,
        )
        logits = self.score(self.dropout(base.last_hidden_state))  # [B, T, C]
        loss = None if labels is None else token_classification_loss(logits, labels)
        out = TokenClassifierOutput(loss, logits, base.hidden_states, base.attentions)
        return out if self.wants_dict(return_dict) else out.to_tuple()


class SmolLM3ForQuestionAnswering(SmolLM3PreTrainedModel):
    """Two logits per token: the answer starts here, the answer ends here."""

    base_model_prefix: ClassVar[str] = "transformer"

    def __init__(self, config: SmolLM3Config) -> None:
        super().__init__(config)
        self.transformer = SmolLM3Model(config)
        self.qa_outputs = nn.Linear(config.hidden_size, 2)
        self.post_init_()

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        start_positions: Tensor | None = None,
        end_positions: Tensor | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        return_dict: bool | None = None,
    ) -> QuestionAnsweringModelOutput | tuple[Any, ...]:
        """Score each token as start and end; positions [B] beyond the row are ignored in the loss."""
        base = self.transformer(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            output_hidden_states=output_hidden_states,
            output_attentions=output_attentions,
            return_dict=True,
        )
        start_logits, end_logits = self.qa_outputs(base.last_hidden_state).unbind(-1)  # [B, T] each
        loss = None
        if start_positions is not None and end_positions is not None:
            loss = question_answering_loss(start_logits, end_logits, start_positions, end_positions)
        out = QuestionAnsweringModelOutput(
            loss, start_logits, end_logits, base.hidden_states, base.attentions
        )
        return out if self.wants_dict(return_dict) else out.to_tuple()
