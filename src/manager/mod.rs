pub fn run(_settings: crate::settings::Settings) -> anyhow::Result<()> {
    anyhow::bail!("not yet")
}
