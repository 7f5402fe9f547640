"""What lies on the disk: run folders, exports, weights; nothing is ever half written."""
