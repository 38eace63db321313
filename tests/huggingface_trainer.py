"""Training by transformers' own Trainer."""

from transformers import Trainer, TrainingArguments


def train(model, examples, folder, steps=1, **arguments):
    arguments = TrainingArguments(
        output_dir=folder,
        max_steps=steps,
        learning_rate=0.1,
        lr_scheduler_type="constant",
        max_grad_norm=0,
        use_cpu=True,
        report_to=[],
        disable_tqdm=True,
        save_strategy="no",
        **{"per_device_train_batch_size": 8, "optim": "sgd", **arguments},
    )
    trainer = Trainer(
        model=model,
        args=arguments,
        train_dataset=examples,
        eval_dataset=examples,
        compute_metrics=lambda prediction: {
            "shape": str(prediction.predictions.shape),
            "accuracy": (prediction.predictions.argmax(-1) == prediction.label_ids).mean(),
        },
    )
    trainer.train()
    return trainer
