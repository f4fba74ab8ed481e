"""Which test holds each public number against a value computed without our code: metric -> test.

The value is worked out by hand, by plain numpy, scipy or torch from the definition, or by peft,
transformers or TransformerLens. A name may hold * and stand for several metrics. A test of
FORMULAS calls the function that computes the numbers of a table, or is of numbers that are drawn at
random, which no other drawing repeats; the others see the whole Result,
and `python -m tests.spoiled` tries whether each notices a wrong value.
"""

from __future__ import annotations

from collections.abc import Iterator
from fnmatch import fnmatchcase

# What several analyses take from one place.
ROWS = "skills/test_scoring.py::test_rows_by_hand"  # means, gains and calibration of a reading
SCORED = ("agreement", "brier", "ece", "ece_mass", "gain", "log_probability", "score")
MEASURES = "patching/test_sweep.py::test_measures_by_hand"  # of a patched run
SUMMARY = "patching/test_sweep.py::test_a_summary_by_hand"  # shares of a gap, from the measures
WHOLE_GAP = "patching/test_activation.py::test_the_scale_ends_at_the_two_runs"
PATCHED = "patching/test_cross_model.py::test_every_measure_by_hand_under_padding"
BEST = "patching/test_best.py::test_the_best_patch_by_hand"
GREEDY = "forgetting/test_retention.py::test_scores_are_of_transformers_own_greedy_answers"
FORMULAS = {
    ROWS,
    "tuco/test_separation.py::test_a_difference_is_of_the_same_prompts",
    BEST,
    MEASURES,
    SUMMARY,
    "spectral/test_decisions.py::test_decisions_are_those_of_the_full_svds",
    "spectral/test_intruders.py::test_a_trained_spectrum_is_held_against_its_own",
    "spectral/test_intruders.py::test_nulls_tell_structure_from_size",
    "stats/test_ranks.py::test_matching_removes_what_the_covariate_explains",
    "stats/test_ranks.py::test_a_difference_of_areas_is_combined_by_delongs_correlation",
    "behaviour/test_emulate.py::test_log_probabilities_add_up_by_hand",
    "tuco/test_contribution.py::test_by_hand",
    "tuco/test_scaling.py::test_the_best_alpha_is_chosen_on_one_half_and_judged_on_the_other",
    "forgetting/test_interpolate.py::test_mixed_logits_are_plain_torchs",
    "forgetting/test_conjugate.py::test_every_number_by_hand",
    "forgetting/test_knowledge.py::test_every_number_by_hand",
    "forgetting/test_probe.py::test_every_number_by_hand",
    "forgetting/test_prune.py::test_every_number_by_hand",
    "forgetting/test_retention.py::test_spread_over_templates_by_hand_and_its_chance",
    "forgetting/test_revive.py::test_savings_by_hand",
    "forgetting/test_revive.py::test_scores_by_hand",
    "forgetting/test_revive.py::test_steps_to_the_threshold_by_hand",
    "forgetting/test_sequential.py::test_every_number_by_hand",
    "forgetting/test_verdict.py::test_what_the_readings_support",
    "patching/test_circuits.py::test_a_head_belongs_to_a_group_by_how_much_it_lowers_the_answer",
    "patching/test_circuits.py::test_overlap_by_hand",
    "skills/test_calibration.py::test_a_difference_is_paired",
    "skills/test_calibration.py::test_by_hand",
    "skills/test_compose.py::test_overlap_by_hand",
    "skills/test_compose.py::test_places_are_rank_correlated_by_their_share_of_each_matrix",
    "skills/test_localize.py::test_a_mask_that_gets_no_better_is_left_after_some_epochs",
    "skills/test_restore.py::test_what_is_chosen_on_one_half_and_reported_on_the_other_by_hand",
}

TRUTHS: dict[str, dict[str, tuple[str, ...]]] = {
    "spectral.intruders": {
        "spectral/test_intruders.py::test_the_whole_table_by_numpy": (
            "sigma", "max_cosine", "nearest", "out_of_span", "participation_ratio",
            "cluster_projection", "intruder", "intruder_energy", "changed",
        ),
        "spectral/test_intruders.py::test_nulls_tell_structure_from_size": (
            "intruder:random_delta", "intruder:random_lowrank", "max_cosine:random_*",
        ),
        "spectral/test_intruders.py::test_a_trained_spectrum_is_held_against_its_own": (
            "max_cosine:same_spectrum*", "intruder:same_spectrum*",
        ),
        "spectral/test_decisions.py::test_decisions_are_those_of_the_full_svds": (
            "max_cosine_low", "max_cosine_high", "fallback",
        ),
    },
    "spectral.delta_spectrum": {
        "spectral/test_delta_spectrum.py::test_every_metric_by_hand": (
            "norm", "relative_norm", "sigma", "effective_rank", "stable_rank", "rank_90",
            "rank_99", "energy_*",
        ),
    },
    "spectral.similarity": {
        "spectral/test_delta_spectrum.py::test_similarity_by_numpy": ("max_cosine",),
    },
    "spectral.directions": {
        "spectral/test_directions.py::test_every_number_by_plain_torch": (
            "sensitivity", "sigma", "word", "loss_change", "score_change",
        ),
    },
    "spectral.explained": {
        "spectral/test_explained.py::test_every_number_by_plain_torch": (
            "energy", "explained", "inputs",
        ),
    },
    "spectral.subspaces": {
        "spectral/test_subspaces.py::test_every_number_by_numpy": (
            "overlap", "angle", "cosine", "sign_agreement", "norm", "replicated", "stock",
        ),
    },
    "spectral.scale": {
        "forgetting/test_retention.py::"
        "test_lambda_one_is_the_tuned_model_and_zero_removes_the_plant": (
            "loss", "loss_change", "score", "score_change",
        ),
        "spectral/test_scale.py::test_what_the_intruder_changes_beyond_another_arm_by_hand": (
            "score_change_of_top_beyond", "loss_change_of_top_beyond",
        ),
    },
    "tuco.contribution": {
        "tuco/test_contribution.py::test_by_hand": ("beta", "tuco_l2", "tuco_sum"),
        "tuco/test_contribution.py::test_every_row_of_the_table_by_hand": (
            "tuco", "preco", "output_co", "length", "base_loss", "layer_ptc", "layer_ftc",
            "layer_tuco", "cumulated", "invisible", "mean:*",
        ),
        "tuco/test_contribution.py::"
        "test_a_result_has_groups_layers_tokens_and_what_it_cannot_see": (
            "auc:tuco", "auc:output_co", "token_tuco",
        ),
        "tuco/test_separation.py::test_a_difference_is_of_the_same_prompts": ("auc_difference*",),
        "stats/test_ranks.py::test_matching_removes_what_the_covariate_explains": (
            "auc_matched:*",
        ),
        "stats/test_ranks.py::test_a_difference_of_areas_is_combined_by_delongs_correlation": (
            "auc_difference:*",
        ),
    },
    "tuco.scaling": {
        "tuco/test_scaling.py::test_the_best_alpha_is_chosen_on_one_half_and_judged_on_the_other": (
            "best", "gain_*",
        ),
        "tuco/test_scaling.py::test_a_result_on_the_shipped_family": (
            "loss*", "score*", "log_probability*",
        ),
    },
    "forgetting.retention": {
        GREEDY: ("score", "score_change"),
        "forgetting/test_paired.py::test_the_worst_group_is_picked_on_other_items": (
            "group_worst*", "group_change_difference",
        ),
        "forgetting/test_paired.py::test_a_table_by_hand": ("lost", "gained", "mcnemar", "item"),
        "forgetting/test_retention.py::test_losses_of_answers_and_bits_by_hand": (
            "answer_loss", "answer_loss_change", "bits_per_byte", "bits_per_byte_change",
        ),
        "forgetting/test_answer_divergence.py::test_the_row_is_transformers_own": ("answer_kl",),
        "forgetting/test_retention.py::test_the_table_is_the_models_own": (
            "loss", "loss_change", "item_loss",
        ),
        "forgetting/test_retention.py::"
        "test_divergence_is_nothing_for_one_model_and_the_sum_over_words_by_hand": ("kl",),
        "forgetting/test_retention.py::test_spread_over_templates_by_hand_and_its_chance": (
            "template_spread", "template_spread_chance",
        ),
    },
    "forgetting.samples": {
        "forgetting/test_samples.py::test_every_number_by_hand": (
            "score", "score_change", "lost", "gained", "lost_adjusted", "gained_adjusted",
            "mcnemar", "item", "group_*",
        ),
    },
    "forgetting.interpolate": {
        "forgetting/test_interpolate.py::test_mixed_logits_are_plain_torchs": ("loss",),
        "forgetting/test_interpolate.py::"
        "test_ends_are_the_models_and_a_changed_head_mixes_like_logits": ("barrier", "score"),
        "forgetting/test_interpolate.py::"
        "test_a_product_of_two_changes_has_a_barrier_the_ensemble_has_not": ("score_change",),
    },
    "forgetting.knowledge": {
        "forgetting/test_knowledge.py::test_every_number_by_hand": (
            "score", "share", "transition",
        ),
    },
    "forgetting.conjugate": {
        "forgetting/test_conjugate.py::test_every_number_by_hand": (
            "broke", "switched", "score", "score_change", "regained", "recovery", "recovery_lost",
            "recovery_net",
        ),
    },
    "forgetting.probe": {
        "forgetting/test_probe.py::test_every_number_by_hand": (
            "accuracy", "accuracy_change", "base_gain", "retention", "retention_lost",
            "selectivity", "kept", "kept_beyond_random",
        ),
    },
    "edits.siblings": {
        "edits/test_siblings.py::test_every_number_by_plain_torch": (
            "score", "score_change", "log_probability", "energy", "beyond_random",
        ),
    },
    "forgetting.kinds": {
        "forgetting/test_kinds.py::test_every_number_by_hand": (
            "share*", "transition", "net", "item",
        ),
        "stats/test_tables.py::test_chi_squared_of_three_kinds_by_its_formula": ("homogeneity",),
    },
    "forgetting.prune": {
        "forgetting/test_prune.py::test_every_number_by_hand": ("recovered", "regained", "score"),
    },
    "forgetting.revive": {
        "forgetting/test_revive.py::test_savings_by_hand": ("savings*", "regained_share"),
        "forgetting/test_revive.py::test_steps_to_the_threshold_by_hand": ("steps_to_threshold",),
        "forgetting/test_revive.py::test_scores_by_hand": ("score",),
    },
    "forgetting.sharpness": {
        "forgetting/test_sharpness.py::test_every_number_by_plain_autograd": (
            "kl", "loss_change", "score_change", "kl_difference", "loss_difference",
            "gradient_norm",
        ),
    },
    "forgetting.verdict": {
        "forgetting/test_verdict.py::test_output_and_loss_against_plain_torch": ("evidence",),
        "forgetting/test_verdict.py::test_what_the_readings_support": ("verdict",),
    },
    "forgetting.sequential": {
        "forgetting/test_sequential.py::test_every_number_by_hand": (
            "score", "forgetting", "backward_transfer", "source_drop", "target_drop",
        ),
    },
    "forgetting.gains": {
        "forgetting/test_gains.py::test_every_number_by_hand": (
            "base_score", "score", "gain", "gain_unknown", "latent", "gap*", "gain_with_score",
            "gain_with_place",
        ),
        "forgetting/test_gains.py::test_gaps_fall_where_templates_come_to_agree": (
            "gap_with_place",
        ),
    },
    "forgetting.association": {
        "forgetting/test_association.py::test_order_is_found_with_its_exact_p_and_the_null": (
            "forgetting", "measure", "spearman",
        ),
        "forgetting/test_association.py::"
        "test_kl_on_the_task_is_a_measure_and_its_score_is_held_fixed": (
            "task_score", "spearman_partial",
        ),
    },
    "behaviour.tokens": {
        "behaviour/test_tokens.py::test_every_number_against_plain_torch": (
            "chosen_change", "conflict_*", "displaced", "entropy*", "fell_*", "item_learnability",
            "kl", "learnability", "log_p", "margin_change", "prior_*", "rejected_change",
            "right_above_wrong*", "rose_*",
        ),
        "behaviour/test_tokens.py::test_losses_agree_with_text_loss_and_with_any_batch": (
            "delta_log_p",
        ),
        "behaviour/test_tokens.py::test_base_against_itself_and_a_uniform_model": ("token",),
    },
    "behaviour.generate": {
        "behaviour/test_generate.py::test_every_number_against_plain_torch": (
            "fresh", "novelty", "text", "word",
        ),
    },
    "behaviour.coverage": {
        "behaviour/test_coverage.py::test_every_number_by_hand": (
            "pass_at*", "distinct*", "entropy*", "valid_mass*", "uniform_kl*",
        ),
        "behaviour/test_coverage.py::test_curves_cross_where_they_are_made_to": ("crossing",),
    },
    "behaviour.critical": {
        "behaviour/test_critical.py::test_every_number_by_plain_torch": (
            "flip*", "broken", "fixed", "score", "tokens",
        ),
    },
    "behaviour.gain": {
        "behaviour/test_gain.py::test_every_number_by_plain_autograd": (
            "gain*", "real_gain", "agreement", "rank_agreement", "sigma", "written",
        ),
    },
    "behaviour.advantage": {
        "behaviour/test_advantage.py::test_every_number_by_plain_torch": (
            "advantage*", "probability", "total*",
        ),
    },
    "behaviour.reliance": {
        "behaviour/test_reliance.py::test_every_number_by_plain_torch": (
            "score*", "log_p", "reliance*",
        ),
        "behaviour/test_reliance.py::test_attribution_by_plain_torch": ("attribution*",),
    },
    "behaviour.faithfulness": {
        "behaviour/test_faithfulness.py::test_every_number_against_transformers_own_answers": (
            "auc", "same_answer", "score",
        ),
        "behaviour/test_faithfulness.py::"
        "test_followed_and_consistent_against_transformers_own_answers": (
            "followed*", "consistent*",
        ),
    },
    "behaviour.emulate": {
        "behaviour/test_emulate.py::test_log_probabilities_add_up_by_hand": ("score*", "loss"),
        "behaviour/test_emulate.py::test_kl_from_the_large_model_grows_with_beta": ("kl",),
    },
    "patching.cross_model": {
        PATCHED: (
            "agreement", "krs", "kl_krs", "log_probability", "logit_difference", "score",
            "recovered:l*",
        ),
        "patching/test_cross_model.py::test_the_answer_can_be_what_the_base_says": (
            "recovered:score",
        ),
        BEST: ("beyond_random:*", "beyond_shuffled:*"),
    },
    "patching.restore": {
        "patching/test_cross_model.py::test_restored_parameters_by_hand": ("krs",),
        MEASURES: ("agreement", "log_probability", "logit_difference", "score"),
        SUMMARY: ("kl_krs", "recovered:*"),
    },
    "patching.activation": {
        "patching/test_activation.py::test_sweeps_agree_with_transformerlens_and_nnsight": (
            "logit_difference",
        ),
        WHOLE_GAP: ("recovered:*",),
        MEASURES: ("log_probability", "score"),
    },
    "patching.groups": {
        MEASURES: ("agreement", "log_probability", "logit_difference", "score"),
        SUMMARY: ("krs", "kl_krs", "recovered:*"),
    },
    "patching.attribution": {
        "patching/test_attribution.py::test_it_is_the_derivative_of_the_patch": ("attribution",),
        "patching/test_attribution.py::test_it_is_exact_where_the_model_is_linear": ("exact",),
        "patching/test_attribution.py::"
        "test_the_exact_ones_are_chosen_on_one_half_and_ranked_on_the_other": (
            "rank_correlation",
        ),
    },
    "patching.circuit": {
        "patching/test_circuits.py::test_a_circuit_is_kept_where_its_groups_act": (
            "score", "logit_difference", "size",
        ),
        "patching/test_circuits.py::test_faithfulness_of_known_circuits": (
            "faithfulness:*", "incompleteness:*", "minimality:*",
        ),
        "patching/test_circuits.py::test_effect_is_the_papers_score": ("effect",),
        "patching/test_circuits.py::test_paths_by_hand": ("logit_change",),
        "patching/test_circuits.py::test_overlap_by_hand": ("jaccard", "shared"),
        "patching/test_circuits.py::"
        "test_a_head_belongs_to_a_group_by_how_much_it_lowers_the_answer": ("chosen",),
    },
    "patching.edge_circuits": {
        "patching/test_edge_circuits.py::"
        "test_a_planted_circuit_is_found_and_is_faithful_where_it_is": (
            "faithfulness", "cpr", "cmd", "size", "edge_attribution",
        ),
        "patching/test_edge_circuits.py::test_a_moved_head_changes_more_edges_than_nodes": (
            "edge_change", "node_change",
        ),
    },
    "patching.path": {
        "patching/test_circuits.py::test_paths_by_hand": ("logit_change", "score"),
        "patching/test_circuits.py::test_effect_is_the_papers_score": ("effect",),
        "patching/test_path_positions.py::"
        "test_paths_from_and_to_mlps_and_the_embedding": ("logit_change",),
    },
    "patching.mask": {
        "patching/test_circuits.py::test_a_step_of_the_mask_by_hand": (
            "chosen", "mask", "score", "size", "target_logit",
        ),
    },
    "patching.lens": {
        "patching/test_lens.py::test_every_layer_by_hand": (
            "kl", "log_probability", "logit_difference", "rank", "score",
        ),
        "patching/test_lens.py::test_ranks_and_likeliest_tokens": ("top_token",),
    },
    "patching.contributions": {
        "patching/test_contributions.py::test_every_part_by_plain_torch": ("contribution",),
    },
    "patching.das": {
        "patching/test_das.py::test_scores_by_plain_torch": (
            "score", "log_probability", "overlap", "training_score",
        ),
    },
    "patching.difference": {
        "patching/test_difference.py::test_every_number_by_plain_torch": (
            "constant", "norm", "component_share", "up", "down", "percentile", "found",
        ),
        "patching/test_difference.py::test_texts_that_were_written_by_plain_torch": (
            "text", "reference_words",
        ),
        "patching/test_difference.py::test_a_planted_constant_difference_is_read_and_steers": (
            "new_words", "word",
        ),
        "patching/test_difference.py::"
        "test_a_model_that_repeats_says_the_token_whose_state_it_is_given": ("repeated",),
    },
    "patching.drift": {
        "patching/test_drift.py::test_every_number_by_plain_torch": (
            "frechet", "cka", "cosine", "uniformity", "alignment",
        ),
    },
    "patching.dictionary": {
        "patching/test_dictionary.py::test_every_number_by_plain_torch": (
            "fvu", "l0", "change_explained", "changed", "activation", "kl_tuned",
        ),
    },
    "patching.steer": {
        "patching/test_steer.py::test_every_number_by_plain_torch": (
            "score", "log_probability", "logit_difference", "kl_tuned", "norm", "text",
            "beyond_random:log_probability",
        ),
    },
    "patching.knockout": {
        "patching/test_knockout.py::test_every_number_by_plain_torch": (
            "score", "log_probability", "logit_difference",
        ),
        "patching/test_knockout.py::test_a_picked_loss_by_hand": ("picked",),
    },
    "patching.patterns": {
        "patching/test_patterns.py::test_by_hand": ("attention", "entropy", "reach", "tvd"),
        "patching/test_patterns.py::test_examples_hold_whole_patterns": ("example_tvd",),
    },
    "patching.prefix": {
        "patching/test_prefix.py::test_every_number_by_plain_torch": (
            "bias", "bias_direction", "bias_share", "content_change", "largest_content_change",
            "prefix_mass",
        ),
    },
    "skills.localize": {
        ROWS: SCORED,
        "skills/test_localize.py::test_a_planted_sparse_change_is_found_in_dense_noise": (
            "entries",
        ),
        "skills/test_localize.py::"
        "test_a_decoy_that_moved_most_stays_in_movement_and_leaves_the_learned_mask": ("flipped",),
        "skills/test_localize.py::"
        "test_only_what_moved_is_taken_and_the_size_is_chosen_on_other_prompts": (
            "choosing_gain", "moved", "size", "N",
        ),
        "skills/test_localize.py::test_a_mask_that_gets_no_better_is_left_after_some_epochs": (
            "epoch", "epochs",
        ),
    },
    "skills.alignment": {
        "skills/test_alignment.py::test_every_number_by_plain_torch": (
            "cosine", "sign_agreement", "overlap", "relevance",
        ),
    },
    "skills.blocks": {
        ROWS: SCORED,
        "skills/test_blocks.py::test_every_arm_is_the_model_with_these_blocks": (
            "loss", "log_probability_change", "N",
        ),
        "skills/test_blocks.py::test_the_useful_block_is_taken_first_and_no_decoy": (
            "score_change",
        ),
        "skills/test_blocks.py::test_an_edit_by_efficacy_generality_and_locality": (
            "efficacy", "generality", "locality",
        ),
    },
    "skills.restore": {
        ROWS: SCORED,
        "skills/test_restore.py::"
        "test_what_is_chosen_on_one_half_and_reported_on_the_other_by_hand": (
            "cost", "free", "harmful",
        ),
        "skills/test_restore.py::test_without_a_harmful_update_none_is_found": ("moved", "N"),
    },
    "skills.compression": {
        ROWS: SCORED,
        "skills/test_compression.py::test_every_arm_of_a_full_member_by_hand": (
            "bits", "ratio", "N",
        ),
        "skills/test_compression.py::"
        "test_whole_matrices_are_truncated_and_all_of_them_is_the_tuned_model": (
            "auroc", "energy_auroc",
        ),
        "skills/test_truncation.py::test_a_matrix_that_only_hurts_is_truncated": ("share",),
    },
    "skills.calibration": {
        "skills/test_calibration.py::test_what_models_answer_is_what_is_measured": (
            "accuracy", "brier", "confidence", "overconfidence", "reliability",
        ),
        "skills/test_calibration.py::test_by_hand": ("ece", "ece_mass"),
        "skills/test_calibration.py::test_a_difference_is_paired": (
            "ece_change", "ece_mass_change",
        ),
    },
    "edits.repair": {
        "edits/test_repair.py::test_rows_are_what_the_written_model_does": ("score", "loss"),
        "edits/test_repair.py::test_the_reported_half_did_not_choose": (
            "chosen_loss_change", "chosen_regained", "recommended",
        ),
        "edits/test_repair.py::test_what_was_planted_is_repaired_and_its_control_is_not": (
            "chosen_score_change", "chosen_loss_beyond",
        ),
    },
    "skills.compose": {
        ROWS: SCORED,
        "skills/test_compose.py::test_disjoint_skills_add_up": ("interference",),
    },
    "skills.overlap": {
        "skills/test_compose.py::test_overlap_by_hand": ("overlap", "within"),
        "skills/test_compose.py::"
        "test_places_are_rank_correlated_by_their_share_of_each_matrix": ("places",),
    },
    "compare.pareto": {
        "findings/test_pareto.py::test_who_forgets_less_at_an_equal_score": (
            "point", "run", "difference",
        ),
        "findings/test_pareto.py::test_the_least_forgetting_at_a_score_by_hand": ("least",),
    },
    "compare.robustness": {
        "findings/test_robustness.py::test_what_a_member_has_more_is_found": ("point",),
        "findings/test_robustness.py::test_the_line_by_numpy": (
            "slope", "intercept", "correlation", "effective",
        ),
    },
    "truth.scoreboard": {
        "scoreboard/test_board.py::test_an_oracle_a_liar_and_silence": (
            "auroc", "average_precision", "found", "false_positive",
        ),
        "scoreboard/test_board.py::test_the_norm_is_led_astray_by_a_decoy": ("beyond_norm",),
        "scoreboard/test_board.py::test_a_refusal_is_counted_and_told": ("refused",),
        "scoreboard/test_board.py::test_scores_are_held_against_those_of_the_own_phantom": (
            "beyond_phantom",
        ),
        "scoreboard/test_intervals.py::test_a_bootstrap_covers_and_half_of_it_does_not": (
            "coverage",
        ),
    },
    "compare.equivalence": {
        "findings/test_recipes.py::"
        "test_recipes_are_the_members_and_their_spread_stands_beside_them": ("spread",),
        "findings/test_equivalence.py::test_sizes_are_compared_as_ratios": (
            "difference", "measure",
        ),
    },
}  # fmt: skip


def named(analysis: str, metric: str) -> Iterator[str]:
    """The tests that hold a metric to its value."""
    for test, metrics in TRUTHS.get(analysis, {}).items():
        if any(fnmatchcase(metric, one) for one in metrics):
            yield test
