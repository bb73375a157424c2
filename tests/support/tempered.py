"""An attention layer whose module's eager attention reads one more argument than others."""

from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.llama import modeling_llama as llama

TEMPERATURE = 3.0


def eager_attention_forward(module, query, key, value, attention_mask, scaling, dropout=0.0, **kwargs):
    query = query * kwargs.get("temperature", 1.0)
    return llama.eager_attention_forward(module, query, key, value, attention_mask, scaling, dropout)


class TemperedAttention(llama.LlamaAttention):
    """Llama's attention with a temperature of the queries, which only the eager function applies."""

    def forward(self, hidden_states, position_embeddings, attention_mask=None, **kwargs):
        shape = (*hidden_states.shape[:-1], -1, self.head_dim)
        query, key, value = (
            project(hidden_states).view(shape).transpose(1, 2) for project in (self.q_proj, self.k_proj, self.v_proj)
        )
        query, key = llama.apply_rotary_pos_emb(query, key, *position_embeddings)
        attend = ALL_ATTENTION_FUNCTIONS.get_interface(self.config._attn_implementation, eager_attention_forward)
        kwargs |= {"scaling": self.scaling, "temperature": TEMPERATURE}
        output, weights = attend(self, query, key, value, attention_mask, **kwargs)
        return self.o_proj(output.reshape(*hidden_states.shape[:-1], -1)), weights
