//! SHOWS the Rust core to Python as `nebula_router._core`; no logic. `python/nebula_router/_core.pyi` is its stub.

use pyo3::prelude::*;

mod bridge;
mod core;
mod error;
mod exchange;
mod key;
mod load;
mod log;
mod sim;
mod simulation;
mod template;

#[pymodule]
mod _core {
    use pyo3::prelude::*;

    #[pymodule_export]
    use super::core::Core;
    #[pymodule_export]
    use super::error::NebulaError;
    #[pymodule_export]
    use super::exchange::Exchange;
    #[pymodule_export]
    use super::key::{chain_from_text, chain_from_tokens};
    #[pymodule_export]
    use super::load::Load;
    #[pymodule_export]
    use super::log::{Log, start_log};
    #[pymodule_export]
    use super::sim::Sim;
    #[pymodule_export]
    use super::simulation::Simulation;
    #[pymodule_export]
    use super::template::{content_format, render_chat};

    #[pymodule_init]
    fn init(module: &Bound<'_, PyModule>) -> PyResult<()> {
        module.add("__version__", env!("CARGO_PKG_VERSION"))?;
        module.add("PATHS", super::core::paths())?;
        module.add("POLICIES", nebula_route::POLICIES.to_vec())?;
        module.add("SIM_POLICIES", nebula_sim::fleet::SIM_POLICIES.to_vec())?;
        module.add("ERROR_KINDS", super::error::kinds())
    }
}
