// The plugin Tapline::Native: tells Zeek what it has, and is told of connections and events.

#pragma once

#include <zeek/plugin/Plugin.h>

#include "flow.h"

namespace zeek::plugin::Tapline_Native {

class Plugin : public zeek::plugin::Plugin {
public:
    // False where the scripts do not declare what the plugin needs.
    bool Configure(const tapline::Options& options);

    // Whether HookDrainEvents() is to be called: Zeek drains events several times for each packet.
    void WatchDrains(bool is_on);

    void HookSetupAnalyzerTree(zeek::Connection* conn) override;
    void HookDrainEvents() override;
    void Done() override;

protected:
    zeek::plugin::Configuration Configure() override;
};

extern Plugin plugin;

} // namespace zeek::plugin::Tapline_Native
