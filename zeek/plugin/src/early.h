// Early publications that are due: behind the events of the current packet, or at a deadline. One queue and one of Zeek's
// timers for all connections.

#pragma once

#include <zeek/Timer.h>

#include <deque>
#include <vector>

#include "kept.h"

namespace tapline {

class Early {
public:
    // The flow is due now: raised with a next RaiseDue().
    void Due(Kept& kept);

    // To be called with each packet: ends calls of RaiseDue() that have nothing to do.
    void Packet();

    // The flow is due in so many seconds, unless it is forgotten before. Deadlines stay in order: where the interval
    // becomes shorter, those that wait keep theirs and the new ones come after them.
    void DueIn(Kept& kept, double seconds);

    // The connection is done, no deadline must find it.
    void Forget(Kept& kept);

    // Raises Tapline::early_due for all that are due, behind the events that wait.
    void RaiseDue();

    // Zeek ends.
    void Clear();

private:
    class DeadlineTimer;

    struct Deadline {
        double time;
        Kept* kept; // null: forgotten
    };

    void Reached(double time);
    void WatchDrains();
    void StartTimer();

    std::vector<KeptPtr> due;
    bool is_watching = false;

    // Those with the numbers `first` and up.
    std::deque<Deadline> deadlines;
    uint64_t first = 1;
    DeadlineTimer* timer = nullptr; // belongs to Zeek
};

extern Early early;

} // namespace tapline
