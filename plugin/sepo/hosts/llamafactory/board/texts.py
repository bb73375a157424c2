"""Texts about sepo's stages in the languages of LLaMA Board."""

from __future__ import annotations

LABELS = {"sepo": "SePO", "selective_dpo": "Selective-DPO", "minor_dpo": "MinorDPO", "treg": "T-REG"}
"""Labels of sepo's stages in the board; a registered stage is listed by its name."""

EXTRA_ARGUMENTS = {
    "en": "Set the keys of the stages SePO, Selective-DPO, MinorDPO and T-REG here, not in the RLHF tab: selecting a "
    "stage fills in its defaults; null means not set. SePO needs an oracle: oracle_model (trained with DPO) and "
    "oracle_base_model, or oracle_model_adapters over oracle_base_model; local directories or hub names.",
    "ru": "У этапов SePO, Selective-DPO, MinorDPO и T-REG ключи задаются здесь, а не на вкладке RLHF: при выборе "
    "этапа подставляются его значения по умолчанию; null значит «не задано». SePO нужен оракул: oracle_model "
    "(обучен DPO) и oracle_base_model, или oracle_model_adapters поверх oracle_base_model; папки или имена на хабе.",
    "zh": "SePO、Selective-DPO、MinorDPO 和 T-REG 阶段的参数在此设置，而不在 RLHF 选项卡：选择阶段后会填入其默认值；"
    "null 表示未设置。SePO 需要一个 oracle：oracle_model（经 DPO 训练）与 oracle_base_model，或 oracle_base_model "
    "之上的 oracle_model_adapters；可填文件夹或模型库名称。",
    "ko": "SePO, Selective-DPO, MinorDPO, T-REG 단계의 키는 RLHF 탭이 아니라 여기에서 설정합니다. 단계를 선택하면 "
    "기본값이 채워지며 null은 설정되지 않음을 뜻합니다. SePO에는 오라클이 필요합니다: oracle_model(DPO로 학습)과 "
    "oracle_base_model, 또는 oracle_base_model 위의 oracle_model_adapters. 폴더나 허브 이름을 씁니다.",
    "ja": "SePO、Selective-DPO、MinorDPO、T-REG ステージのキーは RLHF タブではなくここで設定します。ステージを選ぶと"
    "既定値が入り、null は未設定を意味します。SePO にはオラクルが必要です：oracle_model（DPO で学習済み）と "
    "oracle_base_model、または oracle_base_model に重ねる oracle_model_adapters。フォルダーかハブの名前を書きます。",
}
"""Sentences that are added to the help of the box for extra arguments; other languages get the English one."""
