"""What a model card says: its sections as Markdown, from facts; headings as the field has them.

Sections after Mitchell et al., Model cards for model reporting, FAT* 2019; what they must tell
after the Checklist for Artificial Intelligence in Medical Imaging (CLAIM), 2024 update, Tejani et
al., Radiology: Artificial Intelligence 6(4), 2024.
"""

from __future__ import annotations

import json

from cxr_mlflow.evaluation.markdown import NOT_MEASURED, bullets, pairs, table
from cxr_mlflow.evaluation.model_card_calibration import calibration_section
from cxr_mlflow.evaluation.model_card_facts import CardFacts
from cxr_mlflow.evaluation.model_card_scores import (
    Section,
    controls_section,
    external_section,
    failures_section,
    metrics_section,
    subgroups_section,
)
from cxr_mlflow.names import SPLITS

NOT_FOR_DIAGNOSIS = (
    "Not for diagnosis: a research tool. Nobody may be examined, treated, turned away or reassured "
    "because of what it says."
)
INTENDED = (
    "Research on the classification of chest X-rays: comparing networks, remedies for class "
    "imbalance and views of the images on public data; teaching; testing software around such a "
    "model.",
    "For people who can judge the limits told below: researchers, engineers, students.",
)
OUT_OF_SCOPE = (
    "Diagnosis, triage, screening, or any other decision about a person.",
    "Films of other hospitals, devices, years or age groups than those under Data and sources.",
    "Findings other than the classes named here: a film that shows none of them, or two, still "
    "gets one of these labels (or the model abstains).",
    "Anything that is no frontal chest X-ray: it is not recognised as such.",
)
REFERENCE = (
    "Reference standard: the class folder in which the data set has an image. Who decided it, from "
    "what (report, PCR, reading) and how well readers agree is not told by the data: "
    f"{NOT_MEASURED}."
)
DRAWN_REFERENCE = "Reference standard: the finding that was drawn. No reader was asked."
ETHICS = (
    "A label looks like a diagnosis to whoever sees it without this card: show it together with "
    "the confidence, the abstention and the warnings above.",
    "Sensitive groups: age, sex, ethnicity and illness besides the class are not known here. "
    f"Fairness between people: {NOT_MEASURED}.",
)
RIGHTS = (
    "What the people on the films agreed to, and the licences of the films, differ by source and "
    "are not told by the data. This card grants no right to any film."
)
DRAWN_RIGHTS = "The images are drawn: no person is behind them."
LIMITS = (
    "One training: one seed, one split. Intervals say how much a score could differ on other test "
    "images of the same sources; they do not hold another seed, another split, another hospital.",
    "Patients are not known. Copies of one film are kept together; two films of one patient may "
    "lie on both sides of the split, which makes scores too good.",
    "Temperature, threshold and prediction sets were fitted on the validation images, which also "
    "chose the epoch; what that costs is seen on the test images.",
)
MASK_LIMIT = (
    "The model needs the outline of the lungs. Masks made in another way than those of the "
    f"training are another input: what that does to the scores is {NOT_MEASURED}."
)


def read_first(facts: CardFacts) -> tuple[str, ...]:
    """What stands above everything else."""
    return (NOT_FOR_DIAGNOSIS, *facts.warnings)


def write_sections(facts: CardFacts) -> list[Section]:
    """All sections below the headline, in order."""
    return [
        _details(facts),
        Section("Intended use", (bullets(INTENDED),)),
        Section("Out of scope", (bullets(OUT_OF_SCOPE),)),
        _data(facts),
        _training(facts),
        metrics_section(facts),
        controls_section(facts),
        calibration_section(facts),
        subgroups_section(facts),
        failures_section(facts),
        external_section(facts),
        _ethics(facts),
        _limits(facts),
        _use(facts),
        _provenance(facts),
    ]


def _details(facts: CardFacts) -> Section:
    return Section(
        "Model details",
        (
            pairs(
                {
                    "name": facts.run_name,
                    "registered as": facts.registered or "not registered",
                    **facts.details,
                    "task": f"one of {len(facts.classes)} classes: {', '.join(facts.classes)}",
                    "input": f"grey image, {facts.image_size} × {facts.image_size} px, mask mode "
                    f"{facts.mask_mode}",
                    "card written": facts.created,
                }
            ),
        ),
    )


def _data(facts: CardFacts) -> Section:
    images = [
        [
            split,
            *(f"{counts.get(name, 0):,}" for name in facts.classes),
            f"{sum(counts.values()):,}",
        ]
        for split in SPLITS
        if (counts := facts.images.get(split))
    ]
    sources = [
        [name, source, f"{count:,}"]
        for name in facts.classes
        for source, count in sorted(facts.sources.get(name, {}).items(), key=lambda s: -s[1])
    ]
    left_out = "none"
    if facts.left_out:
        left_out = ", ".join(f"{count:,} {kind}" for kind, count in facts.left_out.items())
    audit = facts.audit or (f"Data audit: {NOT_MEASURED}.",)
    return Section(
        "Data and sources",
        (
            pairs({**facts.data, "left out": left_out}),
            "Images by split. All three come from the same sources: this is internal testing.",
            table(["split", *facts.classes, "all"], images, words=1),
            "Where the images come from, as the data set's own files tell.",
            table(["class", "source", "images"], sources, words=2),
            DRAWN_REFERENCE if facts.synthetic else REFERENCE,
            "What the data give away before any training:",
            bullets(audit),
        ),
        ("class_distribution", "near_duplicates"),
    )


def _training(facts: CardFacts) -> Section:
    options = {
        f"{section} options": ", ".join(f"{name}={value}" for name, value in each.items())
        for section, each in facts.options.items()
    }
    versions = ", ".join(f"{name} {version}" for name, version in facts.versions.items())
    return Section(
        "Training",
        (pairs({**facts.training, **options, "software": versions}),),
        ("training_curves", "draws"),
    )


def _ethics(facts: CardFacts) -> Section:
    rights = DRAWN_RIGHTS if facts.synthetic else RIGHTS
    return Section("Ethical considerations", (bullets([*ETHICS, rights]),))


def _limits(facts: CardFacts) -> Section:
    found = [*LIMITS]
    if facts.mask_mode != "none":
        found.append(MASK_LIMIT)
    if alone := facts.controls.get("never within a source"):
        found.append(f"{alone[:1].upper()}{alone[1:]}.")
    return Section("Limits", (bullets(found),))


def _use(facts: CardFacts) -> Section:
    masked = facts.mask_mode != "none"
    mask = (
        '"mask": [Path("lungs.png").read_bytes()],  # white where the lungs are' if masked else ""
    )
    code = [
        "import mlflow, pandas as pd",
        "from pathlib import Path",
        "",
        f"model = mlflow.pyfunc.load_model({json.dumps(facts.model_uri)})",
        "films = pd.DataFrame({",
        '    "image": [Path("film.png").read_bytes()],',
        *([f"    {mask}"] if masked else []),
        "})",
        "model.predict(films)",
    ]
    return Section(
        "How to use it",
        (
            "\n".join(["```python", *code, "```"]),
            pairs(
                {
                    "image": "bytes of a PNG or JPEG, grey or RGB, of any size",
                    "mask": "bytes of a PNG or JPEG of the same shape" if masked else "not used",
                },
                ("input column", "what to send"),
            ),
            pairs(
                {
                    "label": "the class",
                    "confidence": "its probability, calibrated by the temperature",
                    "p_<class>": "probability of each class",
                    "abstain": "true: the confidence is too low to rely on the label",
                    "prediction_set": "the classes the film may show; it may be empty",
                },
                ("output column", "what it is"),
            ),
        ),
    )


def _provenance(facts: CardFacts) -> Section:
    return Section(
        "Provenance",
        (
            pairs({"run": facts.run_id, "model": facts.model_uri or "not logged", **facts.digests}),
            "Sections follow Mitchell et al. (Model cards for model reporting, 2019); what they "
            "tell follows CLAIM (Checklist for Artificial Intelligence in Medical Imaging, 2024 "
            "update). The same facts for programs: model\\_card.json.",
        ),
    )
