#include "Plugin.h"

#include "batch.h"
#include "connection.h"
#include "early.h"
#include "kept.h"
#include "publication.h"
#include "refused.h"
#include "tap.h"

namespace zeek::plugin::Tapline_Native {

Plugin plugin;

zeek::plugin::Configuration Plugin::Configure() {
    for ( auto* component : tapline::make_components() )
        AddComponent(component);
    zeek::plugin::Configuration config;
    config.name = "Tapline::Native";
    config.description = "Features of connections for Tapline, extracted and packed natively";
    config.version = {1, 0, 0};
    return config;
}

bool Plugin::Configure(const tapline::Options& options) {
    tapline::settings.options = options;
    if ( tapline::settings.is_configured )
        return true;
    if ( ! tapline::find_kept_field() || ! tapline::find_publication() )
        return false;
    tapline::find_connection_fields();
    tapline::settings.is_configured = true;
    tapline::watch_refused();
    EnableHook(zeek::plugin::HOOK_SETUP_ANALYZER_TREE);
    return true;
}

void Plugin::WatchDrains(bool is_on) {
    if ( is_on )
        EnableHook(zeek::plugin::HOOK_DRAIN_EVENTS);
    else
        DisableHook(zeek::plugin::HOOK_DRAIN_EVENTS);
}

void Plugin::HookSetupAnalyzerTree(zeek::Connection* conn) { tapline::attach(conn); }

void Plugin::HookDrainEvents() { tapline::early.RaiseDue(); }

void Plugin::Done() {
    tapline::early.Clear();
    tapline::drop_batches();
    zeek::plugin::Plugin::Done();
}

} // namespace zeek::plugin::Tapline_Native
