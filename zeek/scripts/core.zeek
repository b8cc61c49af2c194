##! What every way of running the package needs: features and publication, without a place to publish to. The package's
##! plugin extracts and packs them where it is installed, otherwise scripts do; both publish the same.

@load ./main
@load ./server_names
@ifdef ( Tapline::native_take )
@load ./native
@else
@load ./extraction
@endif
