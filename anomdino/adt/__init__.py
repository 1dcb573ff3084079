"""ADT-Net: adaptive dual thresholds, and the final score and mask from a score map and boxes (docs/method.md 3).

``model`` holds the network, ``losses`` its training objective, ``training`` the training loop, ``fusion`` the
final score and mask for one image, ``thresholds`` the thresholds that a user can ask for, ``tuning`` the
search for the fusion's two weights, ``plugin`` the use with the maps of any other method, ``store`` the files
of a trained model.
"""
