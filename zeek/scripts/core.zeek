##! What every way of running the package needs: features and publication, without a place to publish to.

@load ./main
@load ./features
@load ./heads
@load ./content
@load ./server_names
@load ./publish
