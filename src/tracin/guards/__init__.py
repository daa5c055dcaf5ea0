"""What a call may change of the user's model and settings, and how that is restored."""

from tracin.guards.guard import Guard as Guard
from tracin.guards.guard import guarded as guarded
from tracin.guards.model_state import is_same_table as is_same_table
from tracin.guards.ownership import Hold as Hold
from tracin.guards.ownership import owned as owned
from tracin.guards.untouched import untouched as untouched
from tracin.guards.untouched import use_eval as use_eval
