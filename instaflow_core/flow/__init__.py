"""The paper's mathematics on tensors: convention, solvers, guidance, and what is found along a flow."""
