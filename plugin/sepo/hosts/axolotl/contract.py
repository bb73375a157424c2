"""Names of Axolotl and of TRL that the adapter relies on; ``../PATCHES.md`` gives the reasons."""

from __future__ import annotations

from sepo.hosts.contract import SHARED, Entry

_TRAINER = "axolotl.core.trainers.dpo.trainer"
_GRPO = "trl.trainer.grpo_trainer"

CONTRACT = (
    Entry("axolotl.integrations.base", "BasePlugin.register", ("cfg",)),
    Entry("axolotl.integrations.base", "BasePlugin.get_input_args"),
    Entry("axolotl.integrations.base", "BasePlugin.get_training_args_mixin"),
    Entry("axolotl.integrations.base", "BasePlugin.get_training_args", ("cfg",)),
    Entry("axolotl.integrations.base", "BasePlugin.load_datasets", ("cfg", "preprocess")),
    Entry("axolotl.integrations.base", "BasePlugin.post_trainer_create", ("cfg", "trainer")),
    Entry("axolotl.utils.schemas.enums", "RLType"),
    Entry("axolotl.core.trainers.dpo.args", "AxolotlDPOConfig"),
    Entry("axolotl.common.datasets", "load_preference_datasets", ("cfg", "cli_args")),
    Entry("axolotl.common.datasets", "TrainDatasetMeta", ("train_dataset", "eval_dataset", "total_num_steps")),
    Entry("axolotl.loaders", "load_tokenizer"),
    Entry("axolotl.utils.data.rl", "load_dpo"),
    Entry("axolotl.utils.data.rl", "generate_dataset_hash_from_config", ("cfg", "cfg_datasets", "tokenizer_name")),
    Entry("axolotl.utils.chat_templates", "get_chat_template_from_config", ("cfg", "ds_cfg", "tokenizer")),
    Entry("axolotl.train", "setup_reference_model", ("cfg", "tokenizer", "processor")),
    Entry("axolotl.logging_config", "AxolotlOrWarnErrorFilter.filter", ("record",)),
    Entry(_TRAINER, "AxolotlDPOTrainer"),
    Entry(_TRAINER, "AxolotlDPOTrainer.training_step"),  # called with the arguments that it is given
    Entry("trl", "DPOTrainer._prepare_dataset", ("dataset", "processing_class", "args", "dataset_name")),
    Entry("trl", "DPOTrainer._precompute_ref_logps", ("dataset", "name", "batch_size")),
    Entry("trl", "DPOConfig.precompute_ref_log_probs"),
    Entry("trl", "DPOTrainer.precompute_ref_logps", on_instances=True),
    Entry("trl", "DPOTrainer.compute_loss", ("model", "inputs", "return_outputs", "num_items_in_batch")),
    Entry("trl", "DPOTrainer.prediction_step", ("model", "inputs", "prediction_loss_only", "ignore_keys")),
    Entry("trl", "DPOTrainer.log", ("logs", "start_time")),
    Entry("axolotl.core.trainers.grpo.trainer", "AxolotlGRPOTrainer"),
    Entry(_GRPO, "GRPOTrainer", ("model", "reward_funcs", "args", "processing_class")),
    Entry(_GRPO, "GRPOTrainer._tokenize_prompts", ("prompts",)),
    Entry(_GRPO, "GRPOTrainer._generate_single_turn", ("prompt_ids", "images", "multimodal_fields")),
    Entry(_GRPO, "GRPOTrainer._generate_and_score_completions", ("inputs",)),
    Entry(_GRPO, "GRPOTrainer._calculate_rewards", ("inputs", "prompts", "completions", "completion_ids_list")),
    Entry(_GRPO, "GRPOTrainer._compute_loss", ("model", "inputs")),
    Entry(_GRPO, "GRPOTrainer._get_train_sampler", ("dataset",)),
    *(
        Entry(_GRPO, f"GRPOTrainer.{name}", on_instances=True)
        for name in ("_metrics", "_tokenizer", "num_generations", "num_generations_eval", "ref_model", "use_vllm")
    ),
    Entry("trl.trainer.utils", "RepeatSampler.generator", on_instances=True),
    Entry("trl.trainer.grpo_config", "GRPOConfig", ("generation_kwargs", "disable_dropout")),
    Entry("accelerate", "PartialState", ("cpu",)),
    Entry("axolotl.utils.environment", "check_cuda_p2p_support"),
    Entry("sys", "excepthook"),
    *SHARED,
)
