package diagnose

// advice is what a person is told. {image}, {port}, {path}, {memory}, {asked}, {command}, {exit}, {project},
// {service} and {namespace} are filled in.
type advice struct {
	code   string // stable
	title  string // Kubernetes' own word where it has one
	reason string
	fixes  []string
	run    string
	blames bool // the image or its settings: the same release would fail again
}

const (
	runDoctor  = "pipeops doctor"
	runProject = "pipeops project show {project}"
	runEvents  = "pipeops events --project {project}"
)

// What stops pods from being made, placed or prepared.
var (
	nodeProblem = advice{
		code: "NODE_PROBLEM", title: "node problem",
		reason: "A node of the cluster is in trouble or being emptied; the release isn't the cause",
		fixes: []string{
			"Look at the nodes: kubectl get nodes, and kubectl describe node <name> for disk, memory and pid pressure",
			"Wait: pods of a lost node are made anew elsewhere after about five minutes",
		},
		run: runDoctor,
	}
	quota = advice{
		code: "QUOTA_EXCEEDED", title: "quota of the namespace exceeded",
		reason: "The namespace {namespace} may not hold another pod of this size",
		fixes: []string{
			"Raise the quota: kubectl describe resourcequota -n {namespace}",
			"Ask for less than {asked}, or for fewer replicas, in the service's settings",
			"Wait until old pods have ended: they count as well, and a rollout needs room for one more pod",
		},
		run: runProject,
	}
	serviceAccount = advice{
		code: "SERVICE_ACCOUNT_MISSING", title: "service account missing",
		reason: "Pods can't be created because the namespace's default service account doesn't exist",
		fixes: []string{
			"Check that the controller manager runs: it creates the account",
			"Create it by hand: kubectl create serviceaccount default -n {namespace}",
		},
		run: runDoctor,
	}
	webhookDown = advice{
		code: "ADMISSION_UNREACHABLE", title: "a policy service of the cluster doesn't answer",
		reason: "The API server must ask an admission webhook before it creates pods, and that one can't be reached",
		fixes: []string{
			"Find the webhook that the message names: kubectl get validatingwebhookconfigurations,mutatingwebhookconfigurations",
			"Check that its Service has ready endpoints",
		},
		run: runDoctor,
	}
	policyRefused = advice{
		code: "POLICY_REFUSED", title: "a policy of the cluster refuses the pods",
		reason: "The message names the policy and the fields that it doesn't allow",
		fixes: []string{
			"Change the fields that the message names in the image or in the service's settings",
			"Ask who runs the cluster to allow it for the namespace {namespace}",
		},
		run: runProject,
	}
	createRefused = advice{
		code: "PODS_REFUSED", title: "pods can't be created",
		reason: "The API server refuses to create the pods; the message says why",
		fixes: []string{
			"Change what the message names",
			"Look at the ReplicaSet: kubectl describe replicaset -n {namespace}",
		},
		run: runDoctor,
	}
	noVolume = advice{
		code: "VOLUME_UNBOUND", title: "Unschedulable",
		reason: "A volume that the pod needs can't be provided on any node",
		fixes: []string{
			"Check that the storage class exists and can provide: kubectl get storageclass,pvc -n {namespace}",
			"Check that the volume's zone has a node",
			"Check capacity and the storage quota",
		},
		run: runDoctor,
	}
	noRoom = advice{
		code: "INSUFFICIENT_RESOURCES", title: "Unschedulable",
		reason: "No node has room: each pod asks for {asked}",
		fixes: []string{
			"Ask for less in the service's settings",
			"Add a node, or remove what isn't needed: kubectl describe nodes shows what is asked for",
			"Leave room for one pod more than the replicas: a rollout starts the new one before it ends an old one",
		},
		run: runProject,
	}
	noNodeAllowed = advice{
		code: "NO_NODE_ALLOWED", title: "Unschedulable",
		reason: "There are nodes, but taints, selectors or spreading rules forbid every one of them",
		fixes: []string{
			"Compare the taints and labels of the nodes with what the message names: kubectl get nodes --show-labels",
			"Make a node schedulable again: kubectl uncordon <name>",
		},
		run: runDoctor,
	}
	notScheduled = advice{
		code: "UNSCHEDULABLE", title: "Unschedulable",
		reason: "The scheduler finds no node for the pod; the message says why",
		fixes: []string{
			"Change what the message names",
			"Check that the scheduler and a ready node are there: kubectl get nodes",
		},
		run: runDoctor,
	}
	mount = advice{
		code: "VOLUME_MOUNT", title: "FailedMount",
		reason: "A volume, secret or configuration can't be mounted on the node",
		fixes: []string{
			"Check that the object that the message names exists in the namespace {namespace}",
			"If the volume hangs on another node, wait six minutes until it is taken from there",
			"Check the storage driver on the node",
		},
		run: runDoctor,
	}
	network = advice{
		code: "POD_NETWORK", title: "FailedCreatePodSandBox",
		reason: "The node can't give the pod a network",
		fixes: []string{
			"Check the network plugin's pods and its pool of addresses on the node",
			"Drain and restart the node if others work",
		},
		run: runDoctor,
	}
)

// What is wrong with the image.
var (
	imageName = advice{
		code: "IMAGE_NAME_INVALID", title: "InvalidImageName",
		reason: "The image's reference isn't well formed",
		fixes: []string{
			"Mend the registry in the project's settings: lower case, no https://, for example ghcr.io/acme",
			"Push again: an empty commit will do",
		},
		run: runProject, blames: true,
	}
	imageNeverPulled = advice{
		code: "IMAGE_NEVER_PULLED", title: "ErrImageNeverPull",
		reason: "The node may not pull images, and doesn't have this one",
		fixes:  []string{"Allow pulling for the namespace {namespace}", "Load the image on every node"},
		run:    runDoctor,
	}
	imageSignature = advice{
		code: "IMAGE_SIGNATURE", title: "SignatureValidationFailed",
		reason: "A policy of the cluster demands a signature that this image doesn't have",
		fixes: []string{
			"Sign the image in the build, with a key that the policy trusts",
			"Check that the signature belongs to this very digest: {image}",
			"Ask who runs the cluster which keys and identities the policy accepts",
		},
		run: runDoctor,
	}
	imageStore = advice{
		code: "IMAGE_STORE_BROKEN", title: "ImageInspectError",
		reason: "The node's image store is damaged",
		fixes:  []string{"Check the node's disk", "Drain the node, clear its image store, and start it again"},
		run:    runDoctor,
	}
	imagePlatform = advice{
		code: "IMAGE_PLATFORM", title: "image isn't built for the node's CPU",
		reason: "The image has no variant for the CPU type of the node that shall run it",
		fixes: []string{
			"Build for the nodes' CPU type: kubectl get nodes -L kubernetes.io/arch shows it",
			"Let the builders have that CPU type too: images are built for the type of the builder",
			"Keep the pods on nodes of the image's CPU type",
		},
		run: runProject, blames: true,
	}
	registryTLS = advice{
		code: "REGISTRY_TLS", title: "node doesn't trust the registry",
		reason: "The registry's certificate isn't trusted on the node, or one speaks HTTP and the other HTTPS",
		fixes: []string{
			"Install the registry's CA on the nodes: containerd reads certs.d/<registry>/hosts.toml",
			"Check the certificate's names and dates, and the node's clock",
			"For a registry over plain HTTP write server = \"http://…\" into that hosts.toml",
		},
		run: runDoctor,
	}
	registryLimit = advice{
		code: "REGISTRY_RATE_LIMIT", title: "registry's rate limit reached",
		reason: "The registry lets nobody pull more for now",
		fixes: []string{
			"Give the nodes a login at the registry, by imagePullSecrets of the default service account in {namespace}: known users may pull more",
			"Use a mirror or a pull-through cache",
			"Wait, and deploy again: pipeops deploy {project}",
		},
		run: runProject,
	}
	registryAway = advice{
		code: "REGISTRY_UNREACHABLE", title: "node can't reach the registry",
		reason: "The node can't resolve or connect to the registry that {image} names",
		fixes: []string{
			"Check that the nodes resolve the registry by the name in {image}",
			"Check DNS, proxy and firewall on the node",
			"Check that the registry is up",
		},
		run: runDoctor,
	}
	imageMissing = advice{
		code: "IMAGE_NOT_FOUND", title: "ImagePullBackOff",
		reason: "The registry doesn't have this image, or hides it: some registries say so as well when they want credentials",
		fixes: []string{
			"Check that the build has pushed it, and that the digest is the same: {image}",
			"Check that the registry's retention rules haven't removed it",
			"Check that the nodes resolve the registry by the name in {image}",
			"If the repository is private, verify the registry credentials of the cluster",
		},
		run: runProject,
	}
	imageAuth = advice{
		code: "IMAGE_PULL_AUTH", title: "ImagePullBackOff",
		reason: "The registry wants credentials, or refuses those that the node has",
		fixes: []string{
			"Give the nodes a login at the registry, by imagePullSecrets of the default service account in {namespace}",
			"Check that those which are there name this registry",
			"Renew an expired token",
			"Check that the account may pull from this repository: {image}",
		},
		run: runProject,
	}
	imagePull = advice{
		code: "IMAGE_PULL", title: "ImagePullBackOff",
		reason: "The node can't pull the image; the message says why",
		fixes: []string{
			"Change what the message names",
			"Try it by hand on the node: crictl pull {image}",
		},
		run: runDoctor,
	}
	pullSlow = advice{
		code: "IMAGE_PULL_SLOW", title: "image still being pulled",
		reason: "The node hasn't finished pulling the image",
		fixes: []string{
			"Make the image smaller: build in one stage, run from a small base",
			"Check the network between node and registry",
			"Raise the deadline in the service's strategy",
		},
		run: runProject,
	}
)

// What keeps the container from starting.
var (
	runsAsRoot = advice{
		code: "RUNS_AS_ROOT", title: "CreateContainerConfigError",
		reason: "The cluster allows no root, and the image runs as root or names its user by word",
		fixes: []string{
			"Set a numeric user other than 0 in the Dockerfile, for example USER 10001",
			"Ask who runs the cluster to allow root in {namespace}",
		},
		run: runProject, blames: true,
	}
	configMissing = advice{
		code: "CONFIG_MISSING", title: "CreateContainerConfigError",
		reason: "The container needs a secret or configuration that isn't in the namespace",
		fixes: []string{
			"Create what the message names in {namespace}",
			"If a webhook of the cluster adds the reference, look there",
		},
		run: runDoctor,
	}
	noCommand = advice{
		code: "NO_COMMAND", title: "CreateContainerError",
		reason: "Neither the image nor the service's settings say what to run",
		fixes: []string{
			"End the Dockerfile with CMD or ENTRYPOINT",
			"Set the command in the service's settings",
		},
		run: runProject, blames: true,
	}
	containerRefused = advice{
		code: "CONTAINER_REFUSED", title: "CreateContainerError",
		reason: "The node's container runtime can't create the container; the message says why",
		fixes: []string{
			"Change what the message names",
			"If it speaks of a reserved name or a time-out, the node is overloaded: drain and restart it",
		},
		run: runDoctor,
	}
	notStarted = advice{
		code: "CONTAINER_NOT_STARTED", title: "container can't be started",
		reason: "The node can't start the container; the message says why",
		fixes:  []string{"Change what the message names", "Look at the pod: kubectl describe pods -n {namespace}"},
		run:    runDoctor,
	}
	otherCPU = advice{
		code: "EXEC_FORMAT", title: "program isn't built for the node's CPU",
		reason: "The node can't execute the program: it is built for another CPU, or a script without a first line like #!/bin/sh",
		fixes: []string{
			"Build for the nodes' CPU type: kubectl get nodes -L kubernetes.io/arch shows it",
			"Let the builders have that CPU type too: images are built for the type of the builder",
			"If it is a script, begin it with #!/bin/sh",
		},
		run: runProject, blames: true,
	}
	notExecutable = advice{
		code: "NOT_EXECUTABLE", title: "program isn't executable",
		reason: "The file of the command may not be executed",
		fixes: []string{
			"Make it executable in the Dockerfile: RUN chmod +x <file>, or COPY --chmod=755",
			"Check that the image's user may read and execute it",
		},
		run: runProject, blames: true,
	}
	startCommand = advice{
		code: "START_COMMAND", title: "RunContainerError",
		reason: "The container's command can't be started; the command is {command}",
		fixes: []string{
			"Check that the file exists in the image, at that path",
			"Check for Windows line ends, or a missing interpreter, in the first line of a script",
			"Check that a dynamically linked program finds its loader: build it static, or use the base it was built on",
		},
		run: runProject, blames: true,
	}
)

// What the program does once it runs.
var (
	healthPath = advice{
		code: "HEALTH_PATH_NOT_FOUND", title: "health path not found",
		reason: "The program answers on port {port}, but knows no {path}",
		fixes: []string{
			"Set the path that the program has in the service's settings",
			"Or let the program answer GET {path} with 200",
		},
		run: runProject, blames: true,
	}
	portSilent = advice{
		code: "PORT_NOT_LISTENING", title: "nothing listens on port {port}",
		reason: "Health checks of the new pods find nobody on port {port}",
		fixes: []string{
			"Set the port that the program listens on in the service's settings; it stands in the variable PORT as well",
			"Let the program listen on 0.0.0.0, not only on 127.0.0.1",
			"If it is slow to start, allow the startup probe more failures",
		},
		run: runProject, blames: true,
	}
	unhealthy = advice{
		code: "HEALTH_CHECK_FAILED", title: "health check failed",
		reason: "The program doesn't answer GET {path} on port {port} as a healthy one",
		fixes: []string{
			"Read the program's log for why it isn't healthy: a database or another dependency is the usual cause",
			"Let {path} pass without login",
			"If it answers slowly, give it more time: pipeops project set {project} --service {service} --probe-timeout 5",
		},
		run: runEvents, blames: true,
	}
	outOfMemory = advice{
		code: "OUT_OF_MEMORY", title: "OOMKilled",
		reason: "The program needs more memory than its limit ({memory})",
		fixes: []string{
			"Raise the memory limit in the service's settings",
			"Tell the runtime its limit, for example GOMEMLIMIT, -XX:MaxRAMPercentage or --max-old-space-size",
			"Look for a leak, or for too much work at start",
		},
		run: runProject, blames: true,
	}
	endedNormally = advice{
		code: "EXITED", title: "program ends by itself",
		reason: "The program ended without an error each time, but a service must stay up",
		fixes: []string{
			"Run it in the foreground: no daemon mode, no & at the end",
			"Check the command: {command}",
		},
		run: runProject, blames: true,
	}
	commandMissing = advice{
		code: "COMMAND_NOT_FOUND", title: "command not found",
		reason: "The shell in the container finds no such command, or the program misses a shared library (exit code 127)",
		fixes: []string{
			"Check the command's path: {command}",
			"Copy what it needs into the Dockerfile's last stage",
		},
		run: runProject, blames: true,
	}
	nativeCrash = advice{
		code: "NATIVE_CRASH", title: "program crashes (exit code {exit})",
		reason: "The program was ended by a fault of its own: 139 is a bad memory access, 134 an abort, 132 an instruction that the CPU lacks",
		fixes: []string{
			"Check native libraries: musl and glibc don't mix",
			"Build for an older CPU level if the nodes are older than the builder",
			"Run the image on your machine and take a core dump",
		},
		run: runEvents, blames: true,
	}
	sigkill = advice{
		code: "KILLED", title: "program is killed (exit code 137)",
		reason: "Something killed the program: mostly memory, or a health check after which it didn't end in time",
		fixes: []string{
			"Raise the memory limit ({memory}): a killed child process doesn't count as OOMKilled",
			"End within 30 s after SIGTERM",
			"Check the node's memory: kubectl describe node <name>",
		},
		run: runProject, blames: true,
	}
	sigterm = advice{
		code: "TERMINATED", title: "program is asked to end again and again",
		reason: "The program ended on SIGTERM, which the node sends when a health check fails",
		fixes: []string{
			"Look for failing probes: kubectl describe pod -n {namespace}",
			"Check the health path {path} on port {port}",
		},
		run: runEvents, blames: true,
	}
	crashed = advice{
		code: "APP_CRASHED", title: "CrashLoopBackOff",
		reason: "The program ends with an error each time it is started (exit code {exit})",
		fixes: []string{
			"Read the last lines of its log",
			"Compare its variables with those of the last good release",
			"Check that what it needs at start (database, migrations, other services) is there",
		},
		run: runEvents, blames: true,
	}
	gate = advice{
		code: "READINESS_GATE", title: "readiness gate not met",
		reason: "The containers are ready, but another controller hasn't given its word yet",
		fixes: []string{
			"Look at the controller of the gate that the pod names: kubectl get pods -n {namespace} -o wide",
			"Check the load balancer's view of the pod's health",
		},
		run: runDoctor,
	}
	overdue = advice{
		code: "ROLLOUT_TIMEOUT", title: "deadline passed",
		reason: "The new pods didn't become available in time, and nothing in the cluster says why",
		fixes: []string{
			"Look at the pods: kubectl describe pods -n {namespace}",
			"Raise the deadline in the service's strategy if the program is slow to start",
		},
		run: runEvents,
	}
)
