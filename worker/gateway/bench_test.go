package gateway_test

func benchWorker() {}
