#include "early.h"

#include <zeek/Conn.h>
#include <zeek/Event.h>
#include <zeek/EventRegistry.h>
#include <zeek/RunState.h>
#include <zeek/packet_analysis/protocol/ip/SessionAdapter.h>

#include <algorithm>

#include "Plugin.h"

namespace tapline {

Early early;

class Early::DeadlineTimer final : public zeek::detail::Timer {
public:
    explicit DeadlineTimer(double time) : Timer(time, zeek::detail::TIMER_SCHEDULE) {}

    void Dispatch(double, bool is_expire) override {
        early.timer = nullptr;
        // Zeek dispatches all timers when it ends, when nothing is published early any more.
        if ( ! is_expire )
            early.Reached(Time());
    }
};

namespace {

// Zeek drains events in the middle of a packet, too, where a file's analyzer cannot wait: then the packet that made a flow due
// is not in it yet. Where Zeek skips a connection, it goes on naming a packet that it is done with.
bool is_in_work(const Kept& kept) {
    return zeek::run_state::current_pkt && kept.conn && ! kept.conn->GetSessionAdapter()->Skipping();
}

void raise(Kept& kept) {
    static const auto event = zeek::event_registry->Register("Tapline::early_due");
    if ( event && kept.conn )
        zeek::event_mgr.Enqueue(event, kept.conn->GetVal());
}

} // namespace

void Early::Due(Kept& kept) {
    due.emplace_back(zeek::NewRef{}, &kept);
    WatchDrains();
}

void Early::WatchDrains() {
    if ( ! is_watching )
        zeek::plugin::Tapline_Native::plugin.WatchDrains(is_watching = true);
}

void Early::Packet() {
    if ( is_watching && due.empty() )
        zeek::plugin::Tapline_Native::plugin.WatchDrains(is_watching = false);
}

void Early::DueIn(Kept& kept, double seconds) {
    double time = zeek::run_state::network_time + seconds;
    if ( ! deadlines.empty() )
        time = std::max(time, deadlines.back().time);
    kept.deadline = first + deadlines.size();
    deadlines.push_back({time, &kept});
    StartTimer();
}

void Early::Forget(Kept& kept) {
    if ( kept.deadline < first )
        return;
    deadlines[kept.deadline - first].kept = nullptr;
    kept.deadline = 0;
}

void Early::StartTimer() {
    while ( ! deadlines.empty() && ! deadlines.front().kept ) {
        deadlines.pop_front();
        ++first;
    }
    if ( timer || deadlines.empty() || zeek::run_state::terminating )
        return;
    timer = new DeadlineTimer(deadlines.front().time);
    zeek::detail::timer_mgr->Add(timer);
}

// One deadline at a time, so that they keep their order among Zeek's other timers. The first one may be a later one than the
// timer's, which was forgotten.
void Early::Reached(double time) {
    if ( ! deadlines.empty() && deadlines.front().time <= time ) {
        Kept* kept = deadlines.front().kept;
        deadlines.pop_front();
        ++first;
        if ( kept ) {
            kept->deadline = 0;
            if ( ! kept->is_early ) {
                kept->is_deadline_over = true;
                kept->early = kept->flow.CurrentExtent();
                raise(*kept);
            }
        }
    }
    StartTimer();
}

void Early::RaiseDue() {
    if ( due.empty() )
        return;
    auto waiting = std::stable_partition(due.begin(), due.end(), [](const KeptPtr& kept) { return ! is_in_work(*kept); });
    std::for_each(due.begin(), waiting, [](const KeptPtr& kept) { raise(*kept); });
    due.erase(due.begin(), waiting);
}

void Early::Clear() {
    due.clear();
    for ( auto& deadline : deadlines )
        if ( deadline.kept )
            deadline.kept->deadline = 0;
    first += deadlines.size();
    deadlines.clear();
}

} // namespace tapline
